"""Shapes as values: reshape, expand, pad and interleave in graphs whose batch size only the run knows.

No function writes a symbolic dimension into the graph as a number. Each sets the output shapes that inference cannot
derive.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims

Size = int | str


def reshape(op: Builder, x: ir.Value, shape: Sequence[Size]) -> ir.Value:
    """Return `x` in a shape of ints and at most one symbolic dimension, which the engine computes."""
    have = dims(x)
    if have == list(shape):
        return x
    target = [
        size if isinstance(size, int) else 0 if position < len(have) and have[position] == size else -1
        for position, size in enumerate(shape)
    ]
    if target.count(-1) > 1:
        raise UnsupportedError(f"`{x.name}` cannot take the shape {list(shape)}: two dimensions are symbolic")
    return _shaped(op.Reshape(x, target), shape)


def reshape_like(op: Builder, x: ir.Value, like: ir.Value | None) -> ir.Value:
    """Return `x` in the shape of `like`."""
    return reshape(op, x, dims(like))


def transpose(op: Builder, x: ir.Value, perm: Sequence[int]) -> ir.Value:
    """Return `x` with its axes permuted; two permutations in a row become one, or none."""
    producer, order = x.producer(), list(perm)
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
        inner = list(producer.attributes.get_ints("perm") or reversed(range(len(order))))
        x, order = producer.inputs[0], [inner[axis] for axis in order]
    return x if order == list(range(len(order))) else op.Transpose(x, perm=order)


def shape_of(op: Builder, shape: Sequence[Size], *sources: ir.Value | None) -> ir.Value | list[int]:
    """Return `shape` as an operand: ints as a list, else a vector that reads symbolic sizes off the `sources`."""
    if all(isinstance(size, int) for size in shape):
        return [int(size) for size in shape]
    pieces = [
        op.constant(np.array([size], np.int64)) if isinstance(size, int) else _read(op, size, sources) for size in shape
    ]
    return pieces[0] if len(pieces) == 1 else op.Concat(*pieces, axis=0)


def expand(op: Builder, x: ir.Value, shape: Sequence[Size], *sources: ir.Value | None) -> ir.Value:
    """Return `x`, of the same rank as `shape`, repeated along the axes where its size is 1."""
    have = dims(x)
    if have == list(shape):
        return x
    # Expand broadcasts both ways: 1 keeps the size that `x` has.
    expanded = [1 if size == mine else size for mine, size in zip(have, shape, strict=True)]
    return _shaped(op.Expand(x, shape_of(op, expanded, *sources)), shape)


def after(op: Builder, x: ir.Value, other: ir.Value) -> ir.Value:
    """Return `x`, available only after `other`; the graph computes and copies nothing for this.

    Engines choose their own order, and some orders hold much memory (docs/decisions/engine-memory.md). A Reshape of
    `x` to its own shape fixes the order.  Its shape input is zeros, which keep each size, computed from the size of
    `other`. Shape in place of Size would not do, for onnxruntime reads the shape off any value of the same shape. Nor
    would a Concat, which onnxruntime turns into a constant.
    """
    assert x.shape is not None
    return op.Reshape(x, op.Min(op.Size(other), np.zeros(len(x.shape), np.int64)), like=x)


def zeros(op: Builder, shape: Sequence[Size], dtype: ir.DataType | None, *sources: ir.Value | None) -> ir.Value:
    """Return zeros of `shape`, with symbolic sizes read off the `sources`."""
    assert dtype is not None
    fill = ir.tensor(np.zeros(1, dtype.numpy()))
    return _shaped(op.ConstantOfShape(shape_of(op, shape, *sources), value=fill), shape)


def pad_or_crop(
    op: Builder,
    x: ir.Value,
    begins: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int],
    fill: float = 0.0,
) -> ir.Value:
    """Return `x` with `begins` and `ends` more elements at `axes`; negative numbers remove elements."""
    where = list(axes)
    if any(pad < 0 for pad in (*begins, *ends)):
        lows = [max(0, -pad) for pad in begins]
        highs = [_size(x, axis) - max(0, -pad) for axis, pad in zip(axes, ends, strict=True)]
        x = op.Slice(x, lows, highs, where)
    pads = [max(0, pad) for pad in (*begins, *ends)]
    if not any(pads):
        return x
    full = [0] * (2 * len(dims(x)))
    for position, axis in enumerate(axes):
        full[axis], full[len(full) // 2 + axis] = pads[position], pads[len(where) + position]
    return op.Pad(x, full, fill) if fill else op.Pad(x, full)


def interleave_zeros(op: Builder, x: ir.Value, steps: Sequence[int], axes: Sequence[int]) -> ir.Value:
    """Return `x` with `step - 1` zeros after each element of each axis: size n becomes n*step."""
    step_of = {axis: step for axis, step in zip(axes, steps, strict=True) if step > 1}
    if not step_of:
        return x
    shape = dims(x)
    split: list[Size] = []
    ends: list[int] = []
    for axis, size in enumerate(shape):
        split += [size, 1] if axis in step_of else [size]
        ends += [0, step_of[axis] - 1] if axis in step_of else [0]
    stuffed = op.Pad(reshape(op, x, split), [0] * len(ends) + ends)
    grown = [_size(x, axis) * step_of[axis] if axis in step_of else size for axis, size in enumerate(shape)]
    return reshape(op, stuffed, grown)


def along(op: Builder, x: ir.Value, axis: int, matrix: np.ndarray) -> ir.Value:
    """Return `matrix` [n, m] applied along `axis` of `x`.

    y[..., j, ...] = sum over i of x[..., i, ...] * matrix[i, j].
    """
    assert x.dtype is not None
    rank = len(dims(x))
    matrix = matrix.astype(x.dtype.numpy())
    if axis == rank - 1:
        return op.MatMul(x, matrix)
    if axis == rank - 2:
        return op.MatMul(np.ascontiguousarray(matrix.T), x)
    order = [other for other in range(rank) if other != axis] + [axis]
    moved = op.MatMul(op.Transpose(x, perm=order), matrix)
    return op.Transpose(moved, perm=[order.index(position) for position in range(rank)])


def _size(x: ir.Value, axis: int) -> int:
    size = dims(x)[axis]
    if not isinstance(size, int):
        raise UnsupportedError(f"axis {axis} of `{x.name}` is symbolic ({size})")
    return size


def _read(op: Builder, size: str, sources: Sequence[ir.Value | None]) -> ir.Value:
    for source in sources:
        if source is not None and size in dims(source):
            axis = dims(source).index(size)
            return op.Shape(source, start=axis, end=axis + 1)
    raise UnsupportedError(f"the dimension `{size}` cannot be read off {[v.name for v in sources if v is not None]}")


def _shaped(value: ir.Value, shape: Sequence[Size]) -> ir.Value:
    value.shape = ir.Shape(list(shape))
    return value
