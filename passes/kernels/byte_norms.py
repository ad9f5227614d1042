"""Norms between 8-bit layers: their statistics and their result from the bytes, without a map of floats.

The graph of an 8-bit bundle turns the rounded output of a layer into floats, takes moments, normalises, and rounds
again.  Here `ByteMoments` and `ByteNorm` read the bytes with the channels last, as the engine's 8-bit convolutions
write them; the engine cancels the transposes that stand between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.match import array_of, only_reader, with_constant
from ttac.passes.graph.rewire import rename
from ttac.passes.graph.shapes import dims, known_dims
from ttac.passes.kernels.linked_graphs import ROOM, place_kernel, version_of
from ttac.passes.lower.lower import name_nodes
from ttac.runtime.graph_check import KERNEL_DOMAIN

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Orders of the axes: channels last, and back."""
FLOAT = ir.DataType.FLOAT
PROBED = (2, 24, 5, 6)
"""Shape of the probe's input."""
Moments = tuple[ir.Value, ir.Value, Sequence[int]]
"""The fields `mean`, `squares` and `axes` of a `ByteSite`."""
SIGNED = {ir.DataType.UINT8: "", ir.DataType.INT8: "Signed"}
"""Type of the bytes -> beginning of the operators' names."""


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """What follows a norm up to its rounding.

    Attributes:
        node: the QuantizeLinear.
        step, zero: its scale and its zero point.
        low, high: bounds of the float values, by activations.
        pool: a MaxPool between norm and rounding.
    """

    node: ir.Node
    step: float
    zero: int
    low: float
    high: float
    pool: ir.Node | None


@dataclass(frozen=True, kw_only=True)
class ByteSite:
    """A norm of bytes.

    Attributes:
        bytes: the rounded output of a layer [N, C, H, W].
        norm: its BatchNormalization.
        mean, squares: values that become those of `ByteMoments`, and the axes over which its results [N, C] are
            averaged; no axis means a reshape to one row for each sample and channel.
    """

    bytes: ir.Value
    norm: ir.Node
    rounded: Rounded
    mean: ir.Value
    squares: ir.Value
    axes: Sequence[int]


def with_byte_norms(model: ir.Model) -> ir.Model | None:
    """A copy of `model` in which norms of bytes are nodes of the library; None without such a norm."""
    model = model.clone()
    sites = _sites(model)
    return _rewritten(model, sites) if sites else None


def byte_probe(opset: int, ir_version: int) -> ir.Model:
    """The graph x, scale, bias -> internal, standard: the same norms of bytes by the library and by standard operators.

    x is [N, C, h, w], scale and bias are [C].
    """
    shapes = {"x": PROBED, "scale": PROBED[1:2], "bias": PROBED[1:2]}
    inputs = [ir.Value(name=name, type=ir.TensorType(FLOAT), shape=ir.Shape(shape)) for name, shape in shapes.items()]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": opset}, name="probe")
    op = Builder(graph, ROOM, opset)
    for name in ("internal", "standard"):
        graph.outputs.append(_norm_of_bytes(op, *inputs))
        graph.outputs[-1].name = name
    model = ir.Model(graph, ir_version=ir_version)
    return _rewritten(model, _sites(model)[:1])


def _norm_of_bytes(op: Builder, x: ir.Value, scale: ir.Value, bias: ir.Value) -> ir.Value:
    zero = np.array(120, np.uint8)
    counted = op.Cast(op.QuantizeLinear(x, 0.02, zero), to=int(FLOAT))
    mean = op.ReduceMean(op.ReduceMean(counted, [2, 3], keepdims=0), [0], keepdims=0)
    lines = op.ReduceMean(op.ReduceSumSquare(counted, [3], keepdims=0), [0, 2], keepdims=0)
    variance = op.Sub(op.Mul(lines, 1 / PROBED[3]), op.Mul(mean, mean))
    y = op.Relu(op.BatchNormalization(counted, scale, bias, mean, variance, epsilon=1e-3))
    return op.DequantizeLinear(op.QuantizeLinear(y, 0.02, np.array(0, np.uint8)), 0.02, np.array(0, np.uint8))


def _sites(model: ir.Model) -> list[ByteSite]:
    return [site for node in model.graph if node.op_type == "Cast" if (site := _site(node)) is not None]


def _rewritten(model: ir.Model, sites: Sequence[ByteSite]) -> ir.Model:
    for site in sites:
        _rewrite(model, site)
    common.RemoveUnusedNodesPass()(model)
    model.graph.sort()
    name_nodes(model)
    model.opset_imports[KERNEL_DOMAIN] = version_of(model.graph)
    return model


def _site(cast: ir.Node) -> ByteSite | None:
    """The norm whose input is this Cast, if nothing else than its moments reads the floats."""
    given, counted = cast.inputs[0], cast.outputs[0]
    sizes = known_dims(counted)
    if given is None or given.dtype not in SIGNED or len(sizes) != 4 or not all(isinstance(s, int) for s in sizes[1:]):
        return None
    readers = list(dict.fromkeys(use.node for use in counted.uses()))
    norms = [node for node in readers if node.op_type == "BatchNormalization" and node.inputs[0] is counted]
    if len(norms) != 1 or counted.is_graph_output() or len(norms[0].outputs) != 1:
        return None
    rest = [node for node in readers if node is not norms[0]]
    moments = _moments_of_rows(rest, sizes) or _moments_of_batch(rest, sizes)
    rounded = _rounded(norms[0].outputs[0], given.dtype)
    if moments is None or rounded is None:
        return None
    mean, squares, axes = moments
    return ByteSite(bytes=given, norm=norms[0], rounded=rounded, mean=mean, squares=squares, axes=axes)


def _moments_of_rows(readers: Sequence[ir.Node], sizes: Sequence[int | str]) -> Moments | None:
    """Mean and mean square of each channel, from a Reshape to one row a channel, which fits one sample alone."""
    if len(readers) != 1 or readers[0].op_type != "Reshape":
        return None
    rows = readers[0].outputs[0]
    if known_dims(rows) != [sizes[1], math.prod(int(size) for size in sizes[2:])]:
        return None
    nodes = list(dict.fromkeys(use.node for use in rows.uses()))
    means = [node for node in nodes if _reduces(node, "ReduceMean", [1])]
    products = [node for node in nodes if node.op_type == "Mul" and list(node.inputs) == [rows, rows]]
    if len(nodes) != 2 or len(means) != 1 or len(products) != 1:
        return None
    squares = only_reader(products[0].outputs[0], "ReduceMean")
    return (means[0].outputs[0], squares.outputs[0], ()) if squares and _reduces(squares, "ReduceMean", [1]) else None


def _moments_of_batch(readers: Sequence[ir.Node], sizes: Sequence[int | str]) -> Moments | None:
    """Mean and mean square of each channel over the batch, from means of maps and sums of lines or maps."""
    maps = [node for node in readers if _reduces(node, "ReduceMean", [2, 3])]
    sums = [node for node in readers if node.op_type == "ReduceSumSquare"]
    if len(readers) != 2 or len(maps) != 1 or len(sums) != 1:
        return None
    mean, of_sums = (only_reader(node.outputs[0], "ReduceMean") for node in (maps[0], sums[0]))
    if mean is None or of_sums is None or not _reduces(mean, "ReduceMean", [0]):
        return None
    summed = next((axes for axes in ([3], [2, 3]) if _reduces(sums[0], "ReduceSumSquare", axes)), [])
    scaled = only_reader(of_sums.outputs[0], "Mul")
    factor = with_constant(scaled)
    averaged = _reduces(of_sums, "ReduceMean", [axis for axis in range(4) if axis not in (1, *summed)])
    if scaled is None or factor is None or not summed or not averaged:
        return None
    share = 1 / math.prod(int(sizes[axis]) for axis in summed)
    is_mean = np.isclose(factor[1].reshape(-1), share, rtol=1e-6).tolist() == [True]
    return (mean.outputs[0], scaled.outputs[0], (0,)) if is_mean else None


def _reduces(node: ir.Node, op_type: str, axes: list[int]) -> bool:
    found = array_of(node.inputs[1]) if node.op_type == op_type and len(node.inputs) > 1 else None
    return found is not None and found.tolist() == axes and not node.attributes.get_int("keepdims", 1)


def _rounded(value: ir.Value, dtype: ir.DataType) -> Rounded | None:
    """The rounding of `value` to bytes of this type, behind activations that the order of numbers survives."""
    low, high, pool = -math.inf, math.inf, None
    while node := only_reader(value, "Relu", "Clip", "MaxPool", "QuantizeLinear"):
        value = node.outputs[0]
        if node.op_type == "MaxPool":
            if pool is not None or len(node.outputs) != 1:
                return None
            pool = node
        elif node.op_type == "QuantizeLinear":
            step, zero = (array_of(held) for held in node.inputs[1:3]) if len(node.inputs) == 3 else (None, None)
            single = step is not None and zero is not None and step.size == zero.size == 1
            if not single or value.dtype != dtype:
                return None
            step_size, zero_point = float(step.item()), int(zero.item())  # type: ignore[union-attr]
            return Rounded(node=node, step=step_size, zero=zero_point, low=low, high=high, pool=pool)
        else:
            bounds = _bounds(node)
            if bounds is None:
                return None
            low, high = max(low, bounds[0]), max(low, min(high, bounds[1]))
    return None


def _bounds(node: ir.Node) -> tuple[float, float] | None:
    """The bounds of a Relu or a Clip; None if one is computed."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    found = [-math.inf, math.inf]
    for i, held in enumerate(node.inputs[1:3]):
        array = array_of(held)
        if held is not None and (array is None or array.size != 1):
            return None
        found[i] = float(array.item()) if array is not None else found[i]
    return found[0], found[1]


def _rewrite(model: ir.Model, site: ByteSite) -> None:
    graph, sizes = model.graph, dims(site.bytes)
    assert site.bytes.dtype is not None
    signed, layer = SIGNED[site.bytes.dtype], site.norm.metadata_props.get(LAYER, "")
    op = Builder(graph, ROOM, model.opset_imports[""])
    cast = next(use.node for use in site.bytes.uses() if use.node.op_type == "Cast")
    with op.at(layer, before=cast):
        last = op.Transpose(site.bytes, perm=list(LAST))
        mean, square = place_kernel(op, f"{signed}ByteMoments", [last], [(FLOAT, sizes[:2])] * 2)
        for old, new in ((site.mean, mean), (site.squares, square)):
            made = op.ReduceMean(new, list(site.axes), keepdims=0) if site.axes else op.Reshape(new, np.array([-1]))
            made.shape = old.shape
            old.replace_all_uses_with(made, replace_graph_outputs=True)
    after = site.rounded
    with op.at(layer, before=after.node):
        scale, bias, *statistics = site.norm.inputs[1:]
        (y,) = place_kernel(
            op,
            f"{signed}ByteNorm",
            [last, scale, bias, *statistics],
            [(site.bytes.dtype, dims(last))],
            epsilon=site.norm.attributes.get_float("epsilon", 1e-5),
            **_range_of_bytes(after, site.bytes.dtype),
        )
        first = op.Transpose(y, perm=list(FIRST))
        if after.pool is not None:
            first = op.MaxPool(first, **{name: held.value for name, held in after.pool.attributes.items()})
        rename(after.node.outputs[0], first)


def _range_of_bytes(rounded: Rounded, dtype: ir.DataType) -> dict[str, int | float]:
    """The attributes of the rounding; its bounds are those of the activation, rounded, because rounding is monotone."""
    limits = np.iinfo(dtype.numpy())
    low, high = (
        int(np.clip(np.rint(np.float32(bound) / np.float32(rounded.step)) + rounded.zero, limits.min, limits.max))
        for bound in (rounded.low, rounded.high)
    )
    return {"step": rounded.step, "zero": rounded.zero, "low": low, "high": high}
