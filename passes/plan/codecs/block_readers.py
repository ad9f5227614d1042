"""Operators that read encoded blocks without decoding them: ChannelDot, ChannelAffine and Along.

With the codec `levels`, the encoded tensors include estimates: a mask of the stopped gradient and the stopped fraction
of each block; for each channel, the rise and the variance within blocks.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.plan.codecs.block_layout import average, block_of, blocks_of, by_channel, place_blocks, with_shape
from ttac.passes.plan.codecs.codec import TINY, Encoded, matrix, row_of, shaped_like, zeros

VARIANCE_CAP = 4.0
"""Largest factor, without a unit, on the approximate input that corrects its variance towards the variance of x."""


def dot(op: Builder, encoded: Encoded, like: ir.Value, g: ir.Value) -> ir.Value:
    """Return the sum of g*x over all axes but the channel, [C], without x.

    Dropped blocks contribute the sum of g times the mean of x, kept blocks contribute their products.  With estimates,
    g counts only where it is not zero.  There, a dropped x is above its mean by rise * stopped fraction.
    """
    values, scale, places, mean, _, *estimates = encoded
    blocks = matrix(op, g, block_of(like))
    kept = blocks_of(op, values, scale)
    g_kept = with_shape(op.GatherND(blocks, places), block_of(like))
    dots = op.ReduceSum(op.Mul(g_kept, kept, like=g_kept), [1], keepdims=0)
    total = op.ReduceSum(blocks, [1], keepdims=0)
    if estimates:
        _, stopped_fraction, rise, _ = estimates
        above = op.Mul(by_channel(op, stopped_fraction, like), op.Unsqueeze(rise, [1]))
        mean = op.Add(mean, op.Reshape(above, [-1], like=mean))
    each = op.ScatterND(op.Mul(total, mean), places, dots)
    return op.ReduceSum(op.ReduceSum(by_channel(op, each, like), [2], keepdims=0), [0], keepdims=0)


def affine(
    op: Builder,
    encoded: Encoded,
    like: ir.Value,
    scale: ir.Value,
    offset: ir.Value | None,
    plus: ir.Value | None = None,
) -> ir.Value:
    """Return x*scale + offset per channel (plus `plus`), with every block of x replaced by its mean.

    In a norm's gradient this map multiplies x with a sum (`dot`) that dropped elements make inexact.  Through kept
    blocks that error would reach all earlier layers; through means it hardly does (docs/decisions/sparse-residuals.md).
    With estimates, a block has two levels (`_two_levels`).  If the whole net drops nothing, x stays x.  The map applies
    to means and block scales before they spread over the elements.
    """
    values, steps, places, mean, single, *estimates = encoded
    values, steps, places = (op.Slice(part, [0], single, [0]) for part in (values, steps, places))
    kept = _map_kept(op, (values, steps, places), like, scale, offset)
    level, fall = by_channel(op, mean, like), None
    if estimates:
        level, scale, offset, fall = _two_levels(op, level, estimates, like, scale, offset, single)
    per_channel = op.Mul(level, op.Unsqueeze(scale, [1]))
    if offset is not None:
        per_channel = op.Add(per_channel, op.Unsqueeze(offset, [1]))
    means = op.Reshape(per_channel, [-1], like=mean)
    lower = None
    if fall is not None:
        lower = op.DequantizeLinear(estimates[0], _per_block(op, fall, mean, like), zeros(op, mean, np.uint8), axis=0)
    if plus is None:
        return place_blocks(op, means, places, with_shape(kept, block_of(like)), like, lower)
    dense = matrix(op, plus, block_of(like))
    there = op.Add(op.GatherND(dense, places), kept, like=kept)
    spread = op.Add(dense, op.Unsqueeze(means, [1]), like=dense)
    spread = op.Add(spread, lower, like=spread) if lower is not None else spread
    return shaped_like(op, op.ScatterND(spread, places, there, like=spread), like)


def _map_kept(op: Builder, kept: Encoded, like: ir.Value, scale: ir.Value, offset: ir.Value | None) -> ir.Value:
    """Return the kept blocks (int8 values, steps, positions) times `scale` plus `offset` of their channels."""
    values, steps, places = kept
    channels, blocks = int(dims(like)[1]), row_of(like) // block_of(like)
    channel = op.Mod(op.Div(op.Squeeze(places, [1]), blocks), channels)
    floats = blocks_of(op, values, op.Mul(steps, op.Gather(scale, channel, axis=0), like=steps))
    if offset is None:
        return floats
    return op.Add(floats, op.Unsqueeze(op.Gather(offset, channel, axis=0), [1]), like=floats)


def _per_block(op: Builder, per_channel: ir.Value, mean: ir.Value, like: ir.Value) -> ir.Value:
    """Return the numbers [C] repeated for each block of their channel."""
    spread = op.Add(by_channel(op, zeros(op, mean, np.float32), like), op.Unsqueeze(per_channel, [1]))
    return op.Reshape(spread, [-1], like=mean)


def _two_levels(
    op: Builder,
    mean: ir.Value,
    estimates: Encoded,
    like: ir.Value,
    scale: ir.Value,
    offset: ir.Value | None,
    single: ir.Value,
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
    """Return the level of x where g passes, the corrected scale and offset, and the fall where g is stopped, [C].

    The levels vary less than x.  The corrected scale restores the variance of x, up to VARIANCE_CAP.  Without this
    correction a part of g along x would remain in the gradients of all layers.
    """
    _, stopped_fraction, rise, within = estimates
    split = by_channel(op, stopped_fraction, like)
    centre = average(op, mean)
    away = op.Sub(mean, op.Unsqueeze(centre, [1]))
    between = average(op, op.Mul(away, away))
    explained = op.Min(op.Mul(average(op, op.Mul(split, op.Sub(1.0, split))), op.Mul(rise, rise)), within)
    ratio = op.Div(op.Add(between, within), op.Max(op.Add(between, explained), TINY))
    ratio = op.Where(op.Greater(single, np.array([0])), 1.0, op.Max(op.Min(ratio, VARIANCE_CAP), 1.0))
    scales = op.Mul(scale, ratio)
    shift = op.Mul(op.Sub(scale, scales), centre)
    passing = op.Add(mean, op.Mul(split, op.Unsqueeze(rise, [1])))
    return passing, scales, op.Add(offset, shift) if offset is not None else shift, op.Neg(op.Mul(scales, rise))


def along(op: Builder, encoded: Encoded, like: ir.Value, g: ir.Value, power: ir.Value) -> ir.Value:
    """Return the component of g along x, row by row, where the decoded x is scaled to the mean square `power`.

    The decoded x is shorter than x, once in the sum and once in its elements.  Without the scaling, a part of g along x
    remains (docs/decisions/sparse-residuals.md).
    """
    values, scale, places, mean, *_ = encoded
    x = place_blocks(op, mean, places, blocks_of(op, values, scale), like)
    rows = list(range(2, len(dims(like))))
    left = op.Div(power, op.Max(op.ReduceMean(op.Mul(x, x), rows, keepdims=1), TINY))
    return op.Mul(x, op.Mul(op.ReduceMean(op.Mul(g, x), rows, keepdims=1), left), like=like)
