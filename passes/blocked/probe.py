"""A small graph that computes the same numbers in the engine's internal operators and in standard ones."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from ttac.passes.blocked.layout import DOMAIN, ROOM, LayoutBuilder
from ttac.passes.graph.shapes import dims
from ttac.passes.kernels.linked_graphs import OLDEST, VERSION
from ttac.runtime.engine import warm_engine
from ttac.runtime.forms import probe_failure
from ttac.runtime.graph_check import KERNEL_DOMAIN

BLOCKS = (16, 8)
"""Channels of a block: with AVX-512, and with AVX, AVX2 and NEON."""
BATCH, SIDE = 2, 6
"""Samples and pixels of the probe's input."""
WINDOW = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
EPSILON = 1e-3
"""Of the probe's norm."""
POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}


def engine_block(opset: int = 18, ir_version: int = 8, *, kernels: bool = False) -> tuple[int, str]:
    """Return the channels of a block of this machine's engine and nothing, or 0 and the reason against each size.

    With `kernels`, the engine also has to run the operators of `ttac-kernels`.  Raises RuntimeMissingError if there is
    no engine.
    """
    warm_engine()
    reasons: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        for block in BLOCKS:
            path = Path(folder) / f"probe-{block}.onnx"
            ir.save(probe(block, opset, ir_version, kernels=kernels), path)
            reasons[block] = probe_failure(path, VERSION if kernels else 0)
            if not reasons[block]:
                return block, ""
    return 0, "; ".join(f"blocks of {block} channels: {reason}" for block, reason in reasons.items())


def probe(block: int, opset: int, ir_version: int, *, kernels: bool = False) -> ir.Model:
    """Return the graph x, dense, each, bias -> internal, standard for engines with blocks of `block` channels.

    x is [N, C, h, w], dense the kernel of a 3x3 convolution, each that of a depthwise one, bias [C].  With `kernels`, a
    norm of `ttac-kernels` follows the convolutions.
    """
    channels = 2 * block
    x = _input("x", [BATCH, channels, SIDE, SIDE])
    dense, each = _input("dense", [channels, channels, 3, 3]), _input("each", [channels, 1, 1, 1])
    bias = _input("bias", [channels])
    graph = ir.Graph([x, dense, each, bias], [], nodes=[], opset_imports={"": opset, DOMAIN: 1}, name="probe")
    op = LayoutBuilder(graph, ROOM, opset)
    standard, internal = _standard(op, graph.inputs, kernels), _internal(op, graph.inputs, block, kernels)
    internal.name, standard.name = "internal", "standard"
    graph.outputs.extend([internal, standard])
    if kernels:
        graph.opset_imports[KERNEL_DOMAIN] = OLDEST
    return ir.Model(graph, ir_version=ir_version)


def _input(name: str, shape: list[int]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def _standard(op: LayoutBuilder, inputs: Sequence[ir.Value], kernels: bool) -> ir.Value:
    x, dense, each, bias = inputs
    y = op.Conv(x, dense, bias, **WINDOW)
    y = op.Relu(op.Add(op.Conv(y, each, bias, group=int(dims(each)[0]), kernel_shape=[1, 1]), y))
    if kernels:
        centred = op.Sub(y, op.ReduceMean(y, [0, 2, 3]))
        variance = op.ReduceMean(op.Mul(centred, centred), [0, 2, 3])
        slope, offset = op.Unsqueeze(bias, [0, 2, 3]), op.Unsqueeze(bias, [0, 2, 3])
        y = op.Add(op.Mul(op.Div(centred, op.Sqrt(op.Add(variance, EPSILON))), slope), offset)
    return op.Add(op.MaxPool(y, **POOL), op.GlobalAveragePool(y))


def _internal(op: LayoutBuilder, inputs: Sequence[ir.Value], block: int, kernels: bool) -> ir.Value:
    x, dense, each, bias = inputs
    channels, pooled = 2 * block, [BATCH, 2 * block, SIDE // 2, SIDE // 2]
    whole = [BATCH, channels, SIDE, SIDE]
    blocks = op.Transpose(op.Reshape(dense, [2, block, 2, block, 3, 3]), perm=[0, 2, 4, 5, 3, 1])
    kernel = op.Reshape(blocks, [channels, channels, 3, 3])
    y = op.internal("Conv", [op.internal("ReorderInput", [x], whole), kernel, bias], whole, **WINDOW)
    affine = {"group": channels, "kernel_shape": [1, 1], "activation": "Relu"}
    y = op.internal("Conv", [y, each, bias, y], whole, **affine)
    if kernels:
        attributes: dict[str, int | float | str] = {"block": block, "epsilon": EPSILON, "act": "none"}
        node = ir.node("NormForward", [y, bias, bias], attributes, domain=KERNEL_DOMAIN)
        node.outputs[0].type, node.outputs[0].shape = y.type, y.shape
        op.place(node, "norm")
        y = node.outputs[0]
    mean = op.internal("GlobalAveragePool", [y], [BATCH, channels, 1, 1])
    largest = op.internal("ReorderOutput", [op.internal("MaxPool", [y], pooled, **POOL)], pooled, channels=channels)
    return op.Add(largest, mean)
