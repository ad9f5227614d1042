"""Blocks of neighbouring elements: their size, and the tensors that hold one number a block or a channel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.plan.codecs.codec import elements_of, row_of, shaped_like, zeros

BLOCK = 64
"""Elements of a block, about: smaller blocks cost more to move than they hold, larger blocks fit the data worse."""
SMALLEST_BLOCK = 8
"""Elements of the smallest block; a row without such a divisor has no blocks."""


def block_of(x: ir.Value) -> int:
    """Return the elements of a block of `x`, about BLOCK at most: whole lines of a map where they fit.

    A block never crosses the end of a row.  Return 0 for rows that are too short, and for [N, F], whose rows mix
    channels.
    """
    if len(dims(x)) < 3:
        return 0
    row, line = row_of(x), int(dims(x)[-1])
    fitting = [size for size in range(SMALLEST_BLOCK, 2 * BLOCK + 1) if row % size == 0]
    whole = [size for size in fitting if size % line == 0]
    return min(whole or fitting, key=lambda size: abs(size - BLOCK), default=0)


def block_bytes(x: ir.Value, ratio: float) -> float:
    """Return the bytes of a sample: one a kept element, scale and position a kept block, a mean a block, a count."""
    blocks = elements_of(x) / block_of(x)
    return blocks * (ratio * (block_of(x) + 4 + 8) + 4) + 8


def with_shape(x: ir.Value, columns: int) -> ir.Value:
    """Return `x` with the shape [rows, columns] noted, where the number of rows depends on the data."""
    x.shape = ir.Shape([f"{x.name}.rows", columns])
    return x


def blocks_of(op: Builder, values: ir.Value, scale: ir.Value) -> ir.Value:
    """Return the kept blocks as floats."""
    return op.DequantizeLinear(values, scale, zeros(op, scale, np.int8), axis=0)


def by_channel(op: Builder, per_block: ir.Value, like: ir.Value) -> ir.Value:
    """Return one number a block as [N, C, blocks of a row]."""
    channels, blocks = int(dims(like)[1]), row_of(like) // block_of(like)
    split = op.Reshape(per_block, [-1, channels, blocks])
    split.shape = ir.Shape([dims(like)[0], channels, blocks])
    return split


def average(op: Builder, per_block: ir.Value) -> ir.Value:
    """Return the mean of each channel, [C], of numbers [N, C, blocks]."""
    return op.ReduceMean(op.ReduceMean(per_block, [2], keepdims=0), [0], keepdims=0)


def place_blocks(
    op: Builder, mean: ir.Value, places: ir.Value, kept: ir.Value, like: ir.Value, plus: ir.Value | None = None
) -> ir.Value:
    """Return the blocks `kept` at `places` and blocks of their `mean` (plus `plus`) elsewhere, shaped like `like`."""
    size = block_of(like)
    column = op.Unsqueeze(mean, [1])
    flat = op.Expand(column, [1, size]) if plus is None else op.Add(plus, column)
    flat.shape = ir.Shape([f"{elements_of(like) // size}*N", size])
    return shaped_like(op, op.ScatterND(flat, places, kept, like=flat), like)
