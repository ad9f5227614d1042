"""ttac operators on the channels of [N, C, ...] tensors: the statistics, sums and affine maps of norms."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import Types, composite, like, per_channel
from ttac.passes.graph.keys import OPEN
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.windows import spatial

SHORT_ROW = 8
"""Row length, in elements, below which the squares of one row are not summed separately."""


@composite("Moments", per_channel(2), outputs=2)
def moments(op: Builder, node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """x [N, C, ...] -> mean [C], biased variance [C], as E[x] and E[x^2] - E[x]^2.

    The room `adapt` moves the source mean into the producing bias, so that x is nearly centred and nothing cancels.
    """
    (x,) = node.inputs
    mean = op.ReduceMean(_per_sample(op, x, "ReduceMean"), [0], keepdims=0)
    return mean, op.Max(op.Sub(_mean_square(op, x), op.Mul(mean, mean)), 0.0)


def _mean_square(op: Builder, x: ir.Value | None) -> ir.Value:
    """E[x^2] of each channel, [C]: squares of one row first, then the mean over rows.

    Engines add squares one after the other. On a constant map of 112x112 this order is 2e-7 off, where all squares at
    once are 9e-4 off, and 1.4 to 2.3 times as fast. A row below SHORT_ROW is too short for one run of the engine's
    loop.
    """
    sizes = [int(size) for size in dims(x)[1:]][1:]
    if not sizes:
        return op.ReduceMean(op.Mul(x, x), [0], keepdims=0)
    at_once = len(sizes) if sizes[-1] < SHORT_ROW and not op.graph.meta.get(OPEN) else 1
    squares = op.ReduceSumSquare(x, list(range(len(sizes) + 2 - at_once, len(sizes) + 2)), keepdims=0)
    square = op.ReduceMean(squares, [0, *range(2, len(sizes) + 2 - at_once)], keepdims=0)
    count = math.prod(sizes[len(sizes) - at_once :])
    return op.Mul(square, 1.0 / count) if count != 1 else square


@composite("ChannelSum", per_channel())
def channel_sum(op: Builder, node: ir.Node) -> ir.Value:
    """g [N, C, ...] -> sum of g over all axes but the channel, [C]."""
    return _sum_over_channels(op, node.inputs[0])


@composite("ChannelDot", per_channel())
def channel_dot(op: Builder, node: ir.Node) -> ir.Value:
    """g, x [N, C, ...] -> sum of g*x over all axes but the channel, [C]."""
    g, x = node.inputs
    return _sum_over_channels(op, op.Mul(g, x))


def _scalar(node: ir.Node) -> Types:
    value = node.inputs[0]
    assert value is not None
    return [(value.dtype, ir.Shape([]))]


@composite("ChannelCount", _scalar)
def channel_count(op: Builder, node: ir.Node) -> ir.Value:
    """x [N, C, ...] -> the number of elements of one channel, as a float scalar; only the run knows N."""
    (x,) = node.inputs
    assert x is not None and x.dtype is not None
    batch = op.Squeeze(op.Cast(op.Shape(x, start=0, end=1), to=int(x.dtype)), [0])
    return op.Mul(batch, float(math.prod(spatial(x))))


@composite("ChannelAffine", like(0))
def channel_affine(op: Builder, node: ir.Node) -> ir.Value:
    """x [N, C, ...], scale [C], offset [C] (may be absent) -> x*scale + offset.

    BatchNormalization with mean 0 and variance 1 is the engine's cheapest form of this map.
    """
    x, scale, *rest = node.inputs
    assert x is not None and x.dtype is not None
    channels, dtype = int(dims(x)[1]), x.dtype.numpy()
    zero, one = np.zeros(channels, dtype), np.ones(channels, dtype)
    return op.BatchNormalization(x, scale, rest[0] if rest else zero, zero, one, epsilon=0.0)


@composite("Along", like(1))
def along(op: Builder, node: ir.Node) -> ir.Value:
    """g, x [N, C, ...], power [N, C, 1...] -> x * mean of g*x over a row: the part of g along x.

    The power is the mean of x*x over a row. A plan that reads another tensor in the place of x needs the power.
    """
    g, x, _ = node.inputs
    rows = list(range(2, len(dims(x))))
    return op.Mul(x, op.ReduceMean(op.Mul(g, x), rows, keepdims=1))


def _sum_over_channels(op: Builder, x: ir.Value | None) -> ir.Value:
    return op.ReduceSum(_per_sample(op, x, "ReduceSum"), [0], keepdims=0)


def _per_sample(op: Builder, x: ir.Value | None, kind: str) -> ir.Value:
    """x [N, C, ...] -> [N, C]: whole maps first. Reducing batch and space at once takes up to 1.5 times as long."""
    axes = list(range(2, len(dims(x))))
    assert x is not None
    if not axes:
        return x
    rows: ir.Value = getattr(op, kind)(x, axes, keepdims=0)
    return rows
