"""Codec `topk`: the largest magnitudes of the whole tensor, as in Ma et al. (arXiv:2503.20354).

`keep_ratios` picks this codec for the setting `select=topk`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.plan.codecs.codec import (
    FLOAT,
    INT64,
    Codec,
    Encoded,
    KeepRatio,
    elements_of,
    nan_unless_finite,
    shaped_like,
)


def encode(op: Builder, x: ir.Value, ratio: KeepRatio | None) -> Encoded:
    """Return exactly the floor(ratio * elements) largest magnitudes, their positions, and the shape of x."""
    assert ratio is not None
    flat = op.Reshape(x, [-1])
    count = op.Cast(op.Floor(op.Mul(op.Cast(op.Shape(flat), to=FLOAT), ratio.own)), to=INT64)
    _, places = op.TopK(op.Abs(flat), count, sorted=0)
    # ONNX does not define where TopK puts NaN.  A NaN added to all kept values cannot get lost.
    kept = nan_unless_finite(op, op.Gather(flat, places, axis=0), op.ReduceSum(flat, keepdims=0))
    return kept, op.Unsqueeze(places, [1]), op.Shape(x)


def decode(op: Builder, encoded: Encoded, like: ir.Value) -> ir.Value:
    """Return the kept elements at their positions and zeros elsewhere, in the shape of `like`."""
    values, places, shape = encoded
    size = op.ReduceProd(shape, [0], keepdims=1)
    blank = op.ConstantOfShape(size, value=ir.tensor(np.zeros(1, np.float32)))
    blank.shape = ir.Shape([f"{like.name}.elements"])
    return shaped_like(op, op.ScatterND(blank, places, values), like)


CODEC = Codec(
    name="topk",
    encode=encode,
    decode=decode,
    bytes=lambda x, ratio: elements_of(x) * ratio * 12,
    error="dropped elements wholly",
    drops=True,
    parts=("places", "shape"),
)
