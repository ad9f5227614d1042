"""Codec `blocks`: some blocks of neighbouring elements in 8 bits, and the mean of every block.

`keep_ratios` picks this codec for the setting `select=blocks`.  docs/decisions/sparse-residuals.md explains the choice
of the kept blocks, the readers, and the error.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.plan.codecs.block_layout import block_bytes, block_of, blocks_of, place_blocks, with_shape
from ttac.passes.plan.codecs.block_readers import affine, along, dot
from ttac.passes.plan.codecs.codec import (
    FLOAT,
    INT64,
    TINY,
    Codec,
    Encoded,
    KeepRatio,
    Reader,
    matrix,
    nan_unless_finite,
    zeros,
)

GOLDEN, PERIOD = 40503, 65536
"""Two integers whose ratio is the golden ratio: its multiples fill an interval more evenly than random numbers."""
PARTS = ("scale", "places", "mean", "single")
READERS: dict[str, Reader] = {"ChannelDot": dot, "ChannelAffine": affine, "Along": along}


def encode(op: Builder, x: ir.Value, ratio: KeepRatio | None) -> Encoded:
    """Return kept blocks as int8, their scales, their positions, the mean of all blocks, and a count.

    The kept blocks are spread over the tensor.  The count is the number of blocks that `affine` reads element by
    element: all if the whole net drops nothing, else none.  The choice of blocks must not depend on their contents.
    The liveliest blocks represent a part of the data only, and a gradient made from them drifts
    (docs/decisions/sparse-residuals.md).
    """
    assert ratio is not None
    blocks = matrix(op, x, block_of(x))
    mean = op.ReduceMean(blocks, [1], keepdims=0)
    places = _spread(op, op.Squeeze(op.Shape(mean), [0]), ratio.own)
    kept = with_shape(op.Gather(blocks, places, axis=0), block_of(x))
    largest = op.ReduceMax(op.Abs(kept), [1], keepdims=0)
    scale = nan_unless_finite(op, op.Add(op.Mul(largest, 1 / 127), TINY), op.Gather(mean, places, axis=0))
    values = op.QuantizeLinear(kept, scale, zeros(op, scale, np.int8), axis=0)
    single = op.Mul(op.Shape(places), op.Cast(op.GreaterOrEqual(ratio.least, 1.0), to=INT64))
    return values, scale, op.Unsqueeze(places, [1]), mean, single


def decode(op: Builder, encoded: Encoded, like: ir.Value) -> ir.Value:
    """Return the kept blocks, and the mean of every other block, in the shape of `like`."""
    values, scale, places, mean, *_ = encoded
    kept = blocks_of(op, values, scale)
    return place_blocks(op, mean, places, kept, like)


def _spread(op: Builder, size: ir.Value, ratio: ir.Value) -> ir.Value:
    """Return floor(ratio*size) different numbers below `size`, ascending: one in each of as many equal stretches.

    Multiples of the golden ratio choose the position in a stretch, so no period of the tensor's layout matches.
    """
    count = op.Cast(op.Floor(op.Mul(op.Cast(size, to=FLOAT), ratio)), to=INT64)
    number = op.Range(np.array(0), count, np.array(1))
    stretches = op.Max(count, np.array(1))
    first = op.Div(op.Mul(number, size), stretches)
    width = op.Sub(op.Div(op.Mul(op.Add(number, np.array(1)), size), stretches), first)
    within = op.Mod(op.Mul(number, np.array(GOLDEN)), np.array(PERIOD))
    return op.Add(first, op.Div(op.Mul(within, width), np.array(PERIOD)))


CODEC = Codec(
    name="blocks",
    encode=encode,
    decode=decode,
    bytes=block_bytes,
    error="kept blocks 1/254 of their largest magnitude; dropped ones, and in an affine map all, but their mean",
    drops=True,
    parts=PARTS,
    readers=READERS,
    takes=lambda x, weights: block_of(x) > 0,
)
