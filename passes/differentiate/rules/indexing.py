"""Gradients of gathers and scatters; a gather is the transpose of a scatter."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import GradientBuilder, gradient
from ttac.passes.differentiate.rules.facts import axis_of, rank, refusal, size_along
from ttac.passes.graph.reshaping import pad_or_crop, reshape, zeros
from ttac.passes.graph.shapes import dims

Gradients = tuple[ir.Value | None, ...]


@gradient("Gather")
def gather(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x at indices along an axis   ->   dx = the sum of dz over the indices of each element."""
    x, indices = node.inputs
    axis, chosen = axis_of(node, 0), dims(indices)
    known = None if indices is None or indices.is_graph_input() else ir.convenience.get_const_tensor(indices)
    if known is not None and known.size == 1:
        size = size_along(node, x, axis)
        start = int(known.numpy().item()) % size
        one = op.Unsqueeze(dz, [axis]) if not chosen else dz
        kept = [*dims(x)[:axis], 1, *dims(x)[axis + 1 :]]
        return pad_or_crop(op, reshape(op, one, kept), [start], [size - start - 1], [axis])
    count = len(chosen)
    front = [*range(axis, axis + count), *range(axis), *range(axis + count, rank(dz))]
    updates = op.Transpose(dz, perm=front) if axis else dz
    shape = [dims(x)[axis], *dims(x)[:axis], *dims(x)[axis + 1 :]]
    ground = zeros(op, shape, dz.dtype, x)
    summed = op.ScatterND(ground, op.Unsqueeze(indices, [count]), updates, reduction="add")
    order = [*range(1, axis + 1), 0, *range(axis + 1, rank(x))]
    return op.Transpose(summed, perm=order) if axis else summed


@gradient("GatherElements")
def gather_elements(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x at one index per element   ->   dx = the sum of dz over the indices of each element."""
    x, indices = node.inputs
    ground = zeros(op, dims(x), dz.dtype, dz, x)
    return op.ScatterElements(ground, indices, dz, axis=axis_of(node, 0), reduction="add")


@gradient("GatherND")
def gather_blocks(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = blocks of x at indices   ->   dx = the sum of dz over the indices of each element."""
    x, indices = node.inputs
    if node.attributes.get_int("batch_dims", 0):
        raise refusal(node, "its `batch_dims` is not 0")
    return op.ScatterND(zeros(op, dims(x), dz.dtype, x), indices, dz, reduction="add")


@gradient("ScatterElements")
def scatter_elements(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = x with updates put (or added) at indices   ->   dx = dz, 0 where overwritten,  dupdates = dz there."""
    _, indices, updates = node.inputs
    axis, adds = axis_of(node, 0), _adds(node)
    dx = dz
    if op.wants(0) and not adds:
        dx = op.ScatterElements(dz, indices, zeros(op, dims(updates), dz.dtype, updates), axis=axis)
    return dx, None, op.GatherElements(dz, indices, axis=axis) if op.wants(2) else None


@gradient("ScatterND")
def scatter_blocks(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = x with blocks put (or added) at indices   ->   dx = dz, 0 where overwritten,  dupdates = dz there."""
    _, indices, updates = node.inputs
    dx = dz
    if op.wants(0) and not _adds(node):
        dx = op.ScatterND(dz, indices, zeros(op, dims(updates), dz.dtype, updates))
    return dx, None, op.GatherND(dz, indices) if op.wants(2) else None


def _adds(node: ir.Node) -> bool:
    reduction = node.attributes.get_string("reduction", "none")
    if reduction not in ("none", "add"):
        raise refusal(node, f"its `reduction` is {reduction!r}; 'none' and 'add' have one")
    return reduction == "add"
