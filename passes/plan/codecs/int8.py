"""Codec `int8`: eight bits an element, scaled row by row.

`budget` picks this codec where a peak must fall.  `keep_ratios` picks it for residuals that may not drop elements.
"""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.plan.codecs.codec import (
    TINY,
    UINT8,
    Codec,
    Encoded,
    KeepRatio,
    elements_of,
    matrix,
    nan_unless_finite,
    row_of,
    shaped_like,
)


def encode(op: Builder, x: ir.Value, ratio: KeepRatio | None) -> Encoded:
    """Return each row in 255 steps from its least to its largest value, with scale and zero point of every row.

    Zero is one of the steps, so zeros stay zeros.
    """
    rows = matrix(op, x, row_of(x))
    low, high = op.Min(op.ReduceMin(rows, [1], keepdims=0), 0.0), op.Max(op.ReduceMax(rows, [1], keepdims=0), 0.0)
    step = op.Add(op.Mul(op.Sub(high, low), 1 / 255), TINY)
    scale = nan_unless_finite(op, step, op.ReduceSum(rows, [1], keepdims=0))
    zero = op.Cast(op.Round(op.Div(op.Neg(low), scale)), to=UINT8)
    return op.QuantizeLinear(rows, scale, zero, axis=0), scale, zero


def decode(op: Builder, encoded: Encoded, like: ir.Value) -> ir.Value:
    """Return the floats in the shape of `like`."""
    return shaped_like(op, op.DequantizeLinear(*encoded, axis=0), like)


CODEC = Codec(
    name="int8",
    encode=encode,
    decode=decode,
    bytes=lambda x, _: elements_of(x) * (1 + 5 / row_of(x)),
    error="1/510 of the range of its row",
    parts=("scale", "zero"),
)
