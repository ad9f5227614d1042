"""The forward of a norm with the statistics of the batch: one node for statistics, scale, residual and activation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.match import array_of, made_by, only_reader
from ttac.passes.graph.shapes import dims
from ttac.passes.kernels.linked_graphs import LinkedGraphs, Type
from ttac.passes.kernels.mask_bits import packed_of
from ttac.passes.kernels.smooth import smooth_activation

MAPS, SAMPLES = [2, 3], [0]
"""Axes of a map, and of the samples."""


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A norm whose forward is one node.

    Attributes:
        mask: whether the derivative of the activation is 1 or 0, as bool; None if no other node reads the mask.
        bits: the same with one bit an element, if the graph packs the mask; then `mask` is None.
    """

    x: ir.Value
    scale: ir.Value
    bias: ir.Value
    mean: ir.Value
    variance: ir.Value
    mask: ir.Value | None
    bits: ir.Value | None
    activation: dict[str, Any]
    epsilon: float


@dataclass(frozen=True)
class Activation:
    """The nodes behind a norm that its kernel replaces: the activation, and the mask of the activation's derivative."""

    node: ir.Node
    mask: ir.Value | None
    attributes: dict[str, Any]


def fuse_forward(graphs: LinkedGraphs, plain_bits: Collection[str] = ()) -> list[Norm]:
    """Replace every norm that has the statistics of its batch; return the norms.

    `plain_bits` are names of packed masks that standard nodes read.

    A norm whose scale or bias follows from its own statistics stays: one node gives the statistics with the result.  A
    gradient may compute a norm again.  There the statistics are read from the first node, and the norm stays.
    """
    found = [node for node in graphs.nodes("BatchNormalization") if has_batch_statistics(node)]
    norms: dict[tuple[object, float], Norm] = {}
    for node in [node for node in found if not _reads_statistics(node)]:
        key = graphs.key(node.inputs[0]), node.attributes.get_float("epsilon", 1e-5)
        if key not in norms:
            norms[key] = _fuse(graphs, node, plain_bits)
        elif node.graph is not norms[key].mean.graph:
            for old, new in zip(node.inputs[3:5], (norms[key].mean, norms[key].variance), strict=True):
                assert old is not None
                graphs.replace(old, new)
    return list(norms.values())


def fuse_again(graphs: LinkedGraphs, norms: Sequence[Norm]) -> None:
    """Replace every norm with a smooth activation that a gradient computes again, from the moments of the forward."""
    by_mean: dict[object, Norm] = {norm.mean: norm for norm in norms}
    for node in graphs.nodes("BatchNormalization"):
        norm = by_mean.get(graphs.source(node.inputs[3]))
        found = smooth_activation(node.outputs[0])
        if norm is None or found is None or not is_again(graphs, node, norm):
            continue
        end, act = found
        inputs = [*node.inputs[:3], None, norm.mean, norm.variance]
        types = [(ir.DataType.FLOAT, dims(norm.x))]
        given = {"epsilon": norm.epsilon, "act": act, "statistics": "given"}
        (made,) = graphs.insert(end, "NormForward", inputs, types, **given)
        graphs.replace(end.outputs[0], made)


def is_again(graphs: LinkedGraphs, node: ir.Node, norm: Norm) -> bool:
    """Whether `node` is the norm computed again."""
    same = [graphs.key(value) for value in (norm.x, norm.scale, norm.bias, norm.mean, norm.variance)]
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return [graphs.key(value) for value in node.inputs] == same and epsilon == norm.epsilon


def _reads_statistics(node: ir.Node) -> bool:
    """Whether scale or bias follow from the norm's mean or variance."""
    statistics = {id(value) for value in node.inputs[3:]}
    pending, seen = list(node.inputs[1:3]), set[int]()
    while pending:
        value = pending.pop()
        if value is None or id(value) in seen:
            continue
        if id(value) in statistics:
            return True
        seen.add(id(value))
        maker = value.producer()
        pending += maker.inputs if maker is not None else []
    return False


def has_batch_statistics(node: ir.Node) -> bool:
    """Whether mean and variance are those of the node's input [N, C, H, W], in the expansion of `Moments`."""
    x, mean, variance = node.inputs[0], node.inputs[3], node.inputs[4]
    if (
        len(dims(x)) != 4
        or x is None
        or x.dtype != ir.DataType.FLOAT
        or not all(isinstance(s, int) for s in dims(x)[1:])
    ):
        return False
    if reduced(mean, "ReduceMean", "ReduceMean") != (x, MAPS, SAMPLES):
        return False
    least = made_by(variance, "Max")
    difference = made_by(least.inputs[0], "Sub") if least is not None else None
    if difference is None or array_of(least.inputs[1]) != 0:  # type: ignore[union-attr]
        return False
    square, product = difference.inputs[0], made_by(difference.inputs[1], "Mul")
    return product is not None and list(product.inputs) == [mean, mean] and _is_mean_square(square, x)


def _is_mean_square(value: ir.Value | None, x: ir.Value) -> bool:
    scaled = made_by(value, "Mul")
    found = reduced(scaled.inputs[0] if scaled is not None else value, "ReduceMean", "ReduceSumSquare")
    if found not in ((x, [3], [0, 2]), (x, MAPS, SAMPLES)):
        return False
    count = float(np.prod([float(dims(x)[axis]) for axis in found[1]]))
    factor = array_of(scaled.inputs[1]) if scaled is not None else np.float32(1)
    return factor is not None and factor == np.float32(1.0 / count)


def reduced(value: ir.Value | None, outer: str, inner: str) -> tuple[ir.Value | None, list[int], list[int]] | None:
    """x and the axes of both reductions, where `value` is outer(inner(x)) without the reduced axes."""
    second = made_by(value, outer)
    first = made_by(second.inputs[0], inner) if second is not None else None
    if first is None or second is None or any(node.attributes.get_int("keepdims", 1) for node in (first, second)):
        return None
    return first.inputs[0], _axes(first), _axes(second)


def _axes(node: ir.Node) -> list[int]:
    axes = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return [int(axis) for axis in axes.reshape(-1)] if axes is not None else []


def _fuse(graphs: LinkedGraphs, node: ir.Node, plain_bits: Collection[str]) -> Norm:
    x, scale, bias, mean, variance = node.inputs
    assert x is not None and scale is not None and bias is not None and mean is not None and variance is not None
    added = _residual_sum(node.outputs[0])
    last = added or node
    residual = next(v for v in added.inputs if v is not node.outputs[0]) if added is not None else None
    found = _activation(last.outputs[0])
    attributes = found.attributes if found is not None else {"act": "none"}
    mask = found.mask if found is not None else None
    shape, epsilon = dims(x), node.attributes.get_float("epsilon", 1e-5)
    whole, vector = (ir.DataType.FLOAT, shape), (ir.DataType.FLOAT, shape[1:2])
    packed = packed_of(graphs, mask) if mask is not None else None
    if packed is not None and packed.name in plain_bits:
        packed = None
    types = [whole, vector, vector, *_mask_types(x, mask, packed)]
    end = found.node if found is not None else last
    made = graphs.insert(end, "NormForward", [x, scale, bias, residual], types, epsilon=epsilon, **attributes)
    for old, new in zip([end.outputs[0], mean, variance, mask if packed is None else None, packed], made, strict=False):
        if old is not None:
            graphs.replace(old, new)
    return Norm(
        x=x,
        scale=scale,
        bias=bias,
        mean=made[1],
        variance=made[2],
        mask=made[3] if mask is not None and packed is None else None,
        bits=made[4] if packed is not None else None,
        activation=attributes,
        epsilon=epsilon,
    )


def _mask_types(x: ir.Value, mask: ir.Value | None, packed: ir.Value | None) -> list[Type | None]:
    """Types of the outputs `mask` and `bits` of the node; the number of bytes depends on the block."""
    if packed is not None:
        return [None, (ir.DataType.UINT8, [dims(x)[0], f"{packed.name}.bytes"])]
    return [(ir.DataType.BOOL, dims(x))] if mask is not None else []


def _residual_sum(y: ir.Value) -> ir.Node | None:
    """The Add that alone reads `y`, and adds a map of the same shape."""
    node = only_reader(y, "Add")
    if node is None or node.inputs[0] is node.inputs[1]:
        return None
    return (
        node
        if all(value is not None and value.shape is not None and dims(value) == dims(y) for value in node.inputs)
        else None
    )


def _activation(u: ir.Value) -> Activation | None:
    """The activation of `u`; that of a Relu or Clip only if nothing but its gradient's mask also reads `u`."""
    if (smooth := smooth_activation(u)) is not None:
        return Activation(smooth[0], None, {"act": smooth[1]})
    if u.is_graph_output():
        return None
    readers = list(dict.fromkeys(use.node for use in u.uses()))
    nodes = [reader for reader in readers if reader.op_type in ("Relu", "Clip")]
    rest = [reader for reader in readers if reader not in nodes]
    if len(nodes) != 1:
        return None
    attributes = activation_attributes(nodes[0])
    mask = mask_of(rest, u, attributes) if attributes else None
    if not attributes or (rest and mask is None):
        return None
    return Activation(nodes[0], mask, attributes)


def activation_attributes(node: ir.Node) -> dict[str, Any]:
    """The attributes that state the activation of a Relu or Clip; empty for a Clip without two constant bounds."""
    if node.op_type == "Relu":
        return {"act": "relu"}
    low, high = (_number(value) for value in [*node.inputs[1:], None, None][:2])
    return {} if low is None or high is None else {"act": "clip", "low": low, "high": high}


def mask_of(readers: list[ir.Node], u: ir.Value, activation: dict[str, Any]) -> ir.Value | None:
    """The mask that the comparisons `readers` of `u` give: u > 0 of a Relu, low < u < high of a Clip."""
    above = [reader for reader in readers if reader.op_type == "Greater" and reader.inputs[0] is u]
    if activation["act"] == "relu":
        fits = len(readers) == len(above) == 1 and _number(above[0].inputs[1]) == 0
        return above[0].outputs[0] if fits else None
    below = [reader for reader in readers if reader.op_type == "Less" and reader.inputs[0] is u]
    if len(readers) != 2 or len(above) != 1 or len(below) != 1:
        return None
    if (_number(above[0].inputs[1]), _number(below[0].inputs[1])) != (activation["low"], activation["high"]):
        return None
    both = only_reader(above[0].outputs[0], "And")
    return both.outputs[0] if both is not None and only_reader(below[0].outputs[0], "And") is both else None


def _number(value: ir.Value | None) -> float | None:
    array = array_of(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None
