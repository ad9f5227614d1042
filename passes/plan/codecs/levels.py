"""Codec `levels`: as `blocks`, with estimates of the dropped elements from the gradient that reads them.

`keep_ratios` picks this codec for the setting `select=levels`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.plan.codecs import blocks
from ttac.passes.plan.codecs.block_layout import block_of, blocks_of, with_shape
from ttac.passes.plan.codecs.codec import FLOAT, UINT8, Encoded, matrix, row_of, zeros

BLOCKS_PER_ESTIMATE = 16
"""Blocks per block that the estimate reads, if as many are kept; more blocks cost time."""
PRIOR_ELEMENTS = 4.0
"""Elements, about, below which the estimated rise shrinks towards zero."""


def estimate(op: Builder, encoded: Encoded, like: ir.Value, g: ir.Value) -> Encoded:
    """Return the mask of zeros in g, their fraction of each block, and the rise and variance of x within blocks.

    The mask is uint8 [blocks, elements]; rise and variance are [C].  The rise is the difference of x between elements
    with and without a gradient, by least squares over some of the kept blocks.  A Relu after x stops g where x is low,
    so most of g's component along x within a block is there.
    """
    values, scale, places, mean, _ = encoded
    size = block_of(like)
    stopped = op.Cast(op.Equal(matrix(op, g, size), 0.0), to=UINT8)
    count = op.MatMulInteger(stopped, np.ones((size, 1), np.uint8))
    fraction = op.Squeeze(op.Mul(op.Cast(count, to=FLOAT), 1.0 / size), [1])
    total = op.Mul(op.Shape(places, start=0, end=1), np.array([BLOCKS_PER_ESTIMATE]))
    stride = op.Max(op.Div(total, op.Shape(mean)), np.array([1]))
    values, scale, places = (op.Slice(each, [0], [2**62], [0], stride) for each in (values, scale, places))
    x = op.Sub(blocks_of(op, values, scale), op.Unsqueeze(op.GatherND(mean, places), [1]))
    there = op.Cast(op.GatherND(stopped, places), to=FLOAT)
    low = op.Neg(op.ReduceSum(op.Mul(with_shape(x, size), with_shape(there, size), like=x), [1], keepdims=0))
    where = op.GatherND(fraction, places)
    both = op.Mul(op.Mul(where, op.Sub(1.0, where)), float(size))
    terms = [low, both, op.ReduceSumSquare(x, [1], keepdims=0), op.Add(zeros(op, low, np.float32), float(size))]
    lift, fit, square, elements = _channel_sums(op, terms, places, mean, like)
    rise, variance = op.Div(lift, op.Add(fit, PRIOR_ELEMENTS)), op.Div(square, op.Max(elements, 1.0))
    return stopped, fraction, rise, variance


def _channel_sums(op: Builder, terms: Encoded, places: ir.Value, mean: ir.Value, like: ir.Value) -> Encoded:
    """Return the sum over each channel, [C], of every entry of `terms`, one number for each block at `places`."""
    channels, blocks_per_row, columns = int(dims(like)[1]), row_of(like) // block_of(like), len(terms)
    rows = op.Concat(*(op.Unsqueeze(each, [1]) for each in terms), axis=1)
    size = op.Concat(op.Shape(mean), np.array([columns]), axis=0)
    every = op.ScatterND(op.ConstantOfShape(size, value=ir.tensor(np.zeros(1, np.float32))), places, rows)
    split = op.Reshape(every, [-1, channels, blocks_per_row, columns])
    split.shape = ir.Shape([dims(like)[0], channels, blocks_per_row, columns])
    sums = op.ReduceSum(op.ReduceSum(split, [2], keepdims=0), [0], keepdims=0)
    return [op.Squeeze(each, [1]) for each in op.Split(sums, [1] * columns, axis=1, outputs=columns)]


CODEC = replace(
    blocks.CODEC,
    name="levels",
    error="as of blocks, but in sums and affine maps two levels: where a gradient is zero and where it is not",
    estimate=estimate,
)
