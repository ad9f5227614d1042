"""Gradients of operators that move elements without computing: layout, joining, cutting, padding, repeating."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import GradientBuilder, gradient
from ttac.passes.differentiate.rules.facts import axis_of, integers, present, rank, refusal, size_along
from ttac.passes.graph.reshaping import (
    Size,
    along,
    interleave_zeros,
    pad_or_crop,
    reshape,
    reshape_like,
    transpose,
    zeros,
)
from ttac.passes.graph.shapes import dims

Gradients = tuple[ir.Value | None, ...]


@gradient("Reshape")
@gradient("Flatten")
@gradient("Squeeze")
@gradient("Unsqueeze")
def reshaped(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x in another shape   ->   dx = dz in the shape of x."""
    return reshape_like(op, dz, node.inputs[0])


@gradient("Transpose")
def transposed(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x with its axes permuted   ->   dx = dz with them permuted back."""
    perm = list(node.attributes.get_ints("perm") or reversed(range(rank(dz))))
    return transpose(op, dz, [perm.index(axis) for axis in range(len(perm))])


@gradient("Expand", broadcasts=True)
def expand(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x repeated along axes of size 1   ->   dx = dz, which the walk sums."""
    return dz


@gradient("Tile")
def tile(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x repeated as a whole along each axis   ->   dx = the sum of dz over the repetitions."""
    x, repeats = node.inputs[0], integers(node, 1) or []
    split: list[Size] = []
    summed = []
    for size, count in zip(dims(x), repeats, strict=True):
        if count != 1:
            summed.append(len(split))
            split.append(count)
        split.append(size)
    return op.ReduceSum(reshape(op, dz, split), summed, keepdims=0) if summed else dz


@gradient("Concat")
def concat(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = a, b, ... side by side   ->   to each its part of dz."""
    axis = axis_of(node, 0)
    sizes = [size_along(node, value, axis) for value in node.inputs]
    if len(op.wanted) == len(sizes) > 1:
        parts = op.Split(dz, sizes, axis=axis, outputs=len(sizes))
        return tuple(parts)
    starts = [sum(sizes[:position]) for position in range(len(sizes))]
    return tuple(
        op.Slice(dz, [start], [start + size], [axis]) if op.wants(position) else None
        for position, (start, size) in enumerate(zip(starts, sizes, strict=True))
    )


@gradient("Split")
def split(op: GradientBuilder, node: ir.Node, *dys: ir.Value | None) -> ir.Value:
    """y1, y2, ... = parts of x along an axis   ->   dx = their gradients side by side, 0 for an unused part."""
    axis = axis_of(node, 0)
    sizes = [size_along(node, value, axis) for value in node.outputs]
    used = [(position, dy) for position, dy in enumerate(dys) if dy is not None]
    if len(used) == 1:
        position, dy = used[0]
        return pad_or_crop(op, dy, [sum(sizes[:position])], [sum(sizes[position + 1 :])], [axis])
    source = used[0][1]
    parts = [
        dy if dy is not None else zeros(op, dims(value), value.dtype, source)
        for dy, value in zip(dys, node.outputs, strict=True)
    ]
    return op.Concat(*parts, axis=axis)


@gradient("Slice")
def slice_(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = each step-th element of x from start to end   ->   dx = dz there, 0 elsewhere."""
    cuts = _cuts(node)
    backwards = [axis for axis, cut in cuts.items() if cut.step < 0]
    if backwards:
        last = [-1] * len(backwards)
        dz = op.Slice(dz, last, [-(2**31)] * len(backwards), backwards, last)
        cuts = {axis: cut[::-1] if axis in backwards else cut for axis, cut in cuts.items()}
    axes = list(cuts)
    dz = interleave_zeros(op, dz, [cut.step for cut in cuts.values()], axes)
    starts = [cut.start for cut in cuts.values()]
    ends = [size_along(node, node.inputs[0], axis) - cut.start - len(cut) * cut.step for axis, cut in cuts.items()]
    return pad_or_crop(op, dz, starts, ends, axes)


def _cuts(node: ir.Node) -> dict[int, range]:
    """Return the positions that the Slice `node` takes, for each axis of which it takes a part."""
    x = node.inputs[0]
    starts, ends = integers(node, 1) or [], integers(node, 2) or []
    axes = integers(node, 3) or list(range(len(starts)))
    steps = integers(node, 4) or [1] * len(starts)
    cuts = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= rank(x)
        if start == 0 and end >= 2**31 - 1 and step == 1:
            continue
        size = size_along(node, x, axis)
        cut = range(size)[start:end:step]
        if not cut:
            raise refusal(node, "its output is empty")
        if cut != range(size):
            cuts[axis] = cut
    return cuts


@gradient("Pad")
def pad(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x with a border   ->   dx = the middle of dz, plus the gradients of the copies of an element."""
    x, mode = node.inputs[0], node.attributes.get_string("mode", "constant")
    pads = integers(node, 1) or []
    axes = [axis % rank(x) for axis in integers(node, 3) or range(rank(x))]
    sides = {axis: (pads[i], pads[len(axes) + i]) for i, axis in enumerate(axes) if pads[i] or pads[len(axes) + i]}
    if mode == "constant":
        begins, ends = [-low for low, _ in sides.values()], [-high for _, high in sides.values()]
        return pad_or_crop(op, dz, begins, ends, list(sides))
    if mode not in ("reflect", "edge", "wrap"):
        raise refusal(node, f"unknown `mode` {mode!r}")
    for axis, (low, high) in sides.items():
        size = size_along(node, x, axis)
        taken = np.pad(np.arange(size), (max(0, low), max(0, high)), mode=mode)  # type: ignore[call-overload]
        taken = taken[max(0, -low) : len(taken) - max(0, -high)]
        dz = along(op, dz, axis, np.eye(size)[taken])
    return dz


@gradient("Col2Im")
def columns_to_image(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = the sum of the columns of x [N, C*taps, L] at their places   ->   dx = the columns of dz.

    A convolution extracts the columns, with one kernel per tap, which is 1 at the tap.
    """
    sizes, block = integers(node, 1) or [], integers(node, 2) or []
    strides = node.attributes.get_ints("strides") or [1] * len(block)
    dilations = node.attributes.get_ints("dilations") or [1] * len(block)
    pads = node.attributes.get_ints("pads") or [0] * (2 * len(block))
    channels, taps = int(dims(dz)[1]), math.prod(block)
    assert dz.dtype is not None and len(sizes) == len(block)
    kernels = np.tile(
        np.eye(taps, dtype=dz.dtype.numpy()).reshape(taps, 1, *block), (channels, *[1] * (1 + len(block)))
    )
    columns = op.Conv(dz, kernels, group=channels, strides=strides, dilations=dilations, pads=pads)
    return reshape_like(op, columns, node.inputs[0])


@gradient("DepthToSpace")
def depth_to_space(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = channels moved into space   ->   dx = dz moved back."""
    block = node.attributes.get_int("blocksize")
    if node.attributes.get_string("mode", "DCR") == "DCR":
        return op.SpaceToDepth(dz, blocksize=block)
    batch, channels, height, width = dims(node.inputs[0])
    blocks = reshape(op, dz, [batch, int(channels) // block**2, height, block, width, block])
    return reshape_like(op, op.Transpose(blocks, perm=[0, 1, 3, 5, 2, 4]), node.inputs[0])


@gradient("SpaceToDepth")
def space_to_depth(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = space moved into channels   ->   dx = dz moved back."""
    return op.DepthToSpace(dz, blocksize=node.attributes.get_int("blocksize"), mode="DCR")


@gradient("Trilu")
def triangle(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x on one side of a diagonal, else 0   ->   dx = dz there."""
    return op.Trilu(dz, present(node, 1), upper=node.attributes.get_int("upper", 1))
