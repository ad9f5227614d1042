"""Codec `sparse`: the elements above a threshold, and one bit for each element.

`keep_ratios` picks this codec for the setting `select=threshold`.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

import ttac.passes.operators.bitmask  # noqa: F401  (registers PackBits and UnpackBits)
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.plan.codecs.codec import (
    FLOAT,
    INT64,
    Codec,
    Encoded,
    KeepRatio,
    elements_of,
    open_shape,
    row_of,
    shaped_like,
    zeros,
)

INT32 = int(ir.DataType.INT32)
SAMPLE_STRIDE = 16
"""Elements per sampled element, for the bounds of the threshold; more elements cost time, fewer widen the bounds."""
LEAST_SAMPLE = 4096
"""Elements of the smallest sample; a smaller tensor finds its threshold among all elements."""
DEVIATIONS = 4.0
"""Standard deviations of the sample's count between the threshold and each of its two bounds."""


def encode(op: Builder, x: ir.Value, ratio: KeepRatio | None) -> Encoded:
    """Return the floor(ratio * elements) largest magnitudes without ties at the threshold, and their mask as bits.

    In a large tensor, a sample of the elements gives two bounds that almost surely enclose the threshold.  The few
    elements between the bounds decide.
    """
    assert ratio is not None
    flat = op.Abs(op.Reshape(x, [-1]))
    if math.prod(int(size) for size in dims(x)[1:]) >= SAMPLE_STRIDE * LEAST_SAMPLE:
        threshold = _between_bounds(op, flat, _coprime(SAMPLE_STRIDE, row_of(x)), ratio.own)
    else:
        threshold = _first_dropped(op, flat, op.Mul(op.Cast(op.Shape(flat), to=FLOAT), ratio.own))
    # A ratio of 1 keeps everything, also the least element.
    threshold = op.Where(op.Less(ratio.own, 1.0), threshold, -1.0)
    # NaN is not less than or equal to the threshold, so NaN is kept.
    mask = op.Not(op.LessOrEqual(op.Abs(x), threshold))
    kept = op.Compress(op.Reshape(x, [-1]), op.Reshape(mask, [-1]), axis=0)
    return kept, op.PackBits(mask)


def decode(op: Builder, encoded: Encoded, like: ir.Value) -> ir.Value:
    """Return the kept elements at their positions and zeros elsewhere, in the shape of `like`."""
    values, bits = encoded
    flat = op.Reshape(op.UnpackBits(bits, shape=open_shape(like)), [-1])
    places = op.Transpose(op.NonZero(flat), perm=[1, 0])
    return shaped_like(op, op.ScatterND(zeros(op, flat, np.float32), places, values), like)


def _first_dropped(op: Builder, flat: ir.Value, count: ir.Value) -> ir.Value:
    """Return the largest element of `flat` after the floor(count) largest, a scalar; the least element after all."""
    size = op.Cast(op.Shape(flat), to=FLOAT)
    position = op.Min(op.Add(op.Floor(op.Max(count, 0.0)), 1.0), size)
    largest, _ = op.TopK(flat, op.Cast(position, to=INT64))
    return op.Squeeze(op.Slice(largest, [-1], [2**62], [0]), [0])


def _between_bounds(op: Builder, flat: ir.Value, stride: int, ratio: ir.Value) -> ir.Value:
    """Return the threshold that a fraction `ratio` of `flat` exceeds, a scalar, from a sample with `stride`."""
    sample = op.Slice(flat, [0], [2**62], [0], [stride])
    size = op.Cast(op.Shape(sample), to=FLOAT)
    spread = op.Mul(op.Sqrt(op.Mul(op.Mul(ratio, op.Sub(1.0, ratio)), size)), DEVIATIONS)
    middle = op.Mul(size, ratio)
    low = _first_dropped(op, sample, op.Add(middle, op.Add(spread, 1.0)))
    high = _first_dropped(op, sample, op.Sub(middle, op.Add(spread, 1.0)))
    above = op.Greater(flat, high)
    near = op.Compress(flat, op.And(op.GreaterOrEqual(flat, low), op.Not(above)), axis=0)
    count = op.Cast(op.ReduceSum(op.Cast(above, to=INT32), [0], keepdims=1), to=FLOAT)
    kept = op.Floor(op.Mul(op.Cast(op.Shape(flat), to=FLOAT), ratio))
    return _first_dropped(op, near, op.Sub(kept, count))


def _coprime(step: int, row: int) -> int:
    """Return the least number from `step` on without a common factor with `row`: samples then fall on all columns."""
    return next(size for size in range(step, 2 * step + row) if math.gcd(size, row) == 1)


CODEC = Codec(
    name="sparse",
    encode=encode,
    decode=decode,
    bytes=lambda x, ratio: elements_of(x) * (4 * ratio + 1 / 8),
    error="dropped elements wholly",
    drops=True,
    parts=("bits",),
)
