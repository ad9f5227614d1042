"""A depthwise convolution between two norms: one node each for the forward and for the gradient of all three."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ttac.passes.graph.match import only_reader
from ttac.passes.graph.rewire import initializer
from ttac.passes.graph.shapes import dims
from ttac.passes.kernels.linked_graphs import LinkedGraphs, fills_blocks, window_attributes
from ttac.runtime.graph_check import KERNEL_DOMAIN

NORM = ("epsilon", "act", "low", "high")
WIDTHS, STRIDES = (3, 5), (1, 2)
"""Kernels and strides for which the library has loops of their own."""


def fuse_depthwise(graphs: LinkedGraphs) -> None:
    """Replace norm, depthwise convolution and norm, and then their gradients, as far as each is one chain."""
    convolutions: dict[object, tuple[ir.Node, ir.Value]] = {}
    for first in graphs.kernels("NormForward"):
        conv = _convolution(first)
        second = _norm_of(conv.outputs[0]) if conv is not None else None
        if conv is not None and second is not None:
            x2 = _fuse_forward(graphs, first, conv, second)
            convolutions[graphs.key(first.inputs[0])] = conv, x2
    for last in graphs.kernels("NormBackward"):
        chain = convolutions.get(graphs.key(last.inputs[1]))
        middle = graphs.made_by(last.inputs[0], "Conv", "ConvTranspose")
        if chain is not None and middle is not None:
            _fuse_backward(graphs, last, middle, *chain)


def _inputs(node: ir.Node, count: int) -> list[ir.Value | None]:
    return [*node.inputs, *([None] * count)][:count]


def _convolution(norm: ir.Node) -> ir.Node | None:
    """The depthwise convolution that alone reads the norm; None if a residual or a mask belongs to the norm."""
    if _inputs(norm, 4)[3] is not None or len(norm.outputs) > 3:
        return None
    conv = only_reader(norm.outputs[0], "Conv")
    if conv is None or conv.domain or conv.inputs[0] is not norm.outputs[0]:
        return None
    (channels, *sizes), kernel = dims(norm.outputs[0])[1:], dims(conv.inputs[1])
    if not all(isinstance(size, int) for size in (channels, *sizes)) or kernel[:2] != [channels, 1]:
        return None
    # Without blocks, the library computes one channel at a time.
    blocks = int(channels) % 8 == 0 and fills_blocks(int(channels))
    depthwise = conv.attributes.get_int("group", 1) == channels and blocks
    dilated = set(conv.attributes.get_ints("dilations", (1, 1))) != {1}
    padded = conv.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    fast = set(kernel[2:]) <= set(WIDTHS) and set(conv.attributes.get_ints("strides", (1, 1))) <= set(STRIDES)
    return conv if depthwise and padded and fast and not dilated else None


def _norm_of(x: ir.Value) -> ir.Node | None:
    """The norm that alone reads x, in its graph, without residual and mask."""
    readers = list(dict.fromkeys(use.node for use in x.uses()))
    if len(readers) != 1 or readers[0].domain != KERNEL_DOMAIN or readers[0].op_type != "NormForward":
        return None
    return readers[0] if _inputs(readers[0], 4)[3] is None and len(readers[0].outputs) <= 3 else None


def _attributes(first: ir.Node, second: ir.Node, conv: ir.Node) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for number, norm in (("1", first), ("2", second)):
        made |= {f"{name}{number}": norm.attributes[name].value for name in NORM if name in norm.attributes}
    return {**made, **window_attributes(conv, conv.inputs[1])}


def _fuse_forward(graphs: LinkedGraphs, first: ir.Node, conv: ir.Node, second: ir.Node) -> ir.Value:
    """Replace the three nodes; return the output of the convolution."""
    x1, scale1, bias1 = first.inputs[:3]
    _, w, conv_bias = _inputs(conv, 3)
    scale2, bias2 = second.inputs[1:3]
    whole, single = dims(conv.outputs[0]), ir.DataType.FLOAT
    vector = (single, whole[1:2])
    types = [(single, whole), (single, whole), vector, vector, vector, vector]
    operands = [x1, scale1, bias1, w, conv_bias, scale2, bias2]
    made = graphs.insert(second, "DepthwiseForward", operands, types, **_attributes(first, second, conv))
    old = [second.outputs[0], conv.outputs[0], *first.outputs[1:3], *second.outputs[1:3]]
    for value, new in zip(old, made, strict=True):
        graphs.replace(value, new)
    return made[1]


def _fuse_backward(graphs: LinkedGraphs, last: ir.Node, middle: ir.Node, conv: ir.Node, convolved: ir.Value) -> None:
    """Replace the chain of the gradient: the second norm's, the convolution's `middle`, the first norm's `last`."""
    dx2 = graphs.source(middle.inputs[0])
    first = dx2.producer() if dx2 is not None else None
    if first is None or first.op_type != "NormBackward" or not _is_chain(graphs, first, middle, last):
        return
    if graphs.source(first.inputs[1]) is not convolved:
        return
    w = _weight(conv, last.graph)
    if w is None:
        return
    attributes = _attributes(last, first, conv)
    dy2, x2, scale2, bias2, mean2, var2 = _inputs(first, 6)
    _, x1, scale1, bias1, mean1, var1 = _inputs(last, 6)
    operands = [dy2, x2, x1, w, scale1, bias1, mean1, var1, scale2, bias2, mean2, var2]
    single, shape = ir.DataType.FLOAT, dims(x1)
    vector = (single, shape[1:2])
    types = [(single, shape) if last.outputs[0].name else None, vector, vector, vector, vector]
    made = graphs.insert(last, "DepthwiseBackward", operands, types, **attributes)
    for value, new in zip([*last.outputs[:3], *first.outputs[1:3]], made, strict=True):
        if value.name:
            graphs.replace(value, new)


def _is_chain(graphs: LinkedGraphs, first: ir.Node, middle: ir.Node, last: ir.Node) -> bool:
    """Whether nobody else reads the gradients between the nodes, no mask is kept, and no residual or sum is read.

    The node takes the place of the last of the three.  A stage of the backward may end within the chain; the graph of
    the second norm then passes on the gradient that it reads.
    """
    if first.graph is not last.graph and not _can_move(graphs, first):
        return False
    if any(len(graphs.readers(value)) != 1 for value in (first.outputs[0], middle.outputs[0])):
        return False
    return all(len(norm.outputs) == 3 and not any(norm.inputs[6:]) for norm in (first, last))


def _can_move(graphs: LinkedGraphs, norm: ir.Node) -> bool:
    """Whether no node of the norm's graph waits for its results, and the graph has another norm."""
    waiting = any(value.uses() for value in norm.outputs[1:])
    others = [node for node in norm.graph or () if node.op_type == norm.op_type and node is not norm]
    return not waiting and bool(others)


def _weight(conv: ir.Node, graph: ir.Graph | None) -> ir.Value | None:
    """The convolution's kernel for a node of `graph`: a graph input by its name, or a copy of the constant."""
    w = conv.inputs[1]
    if w is None or graph is None or w.const_value is None:
        return w
    name = str(w.name)
    return graph.initializers.get(name) or initializer(graph, name, w.const_value.numpy())
