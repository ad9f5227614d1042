"""Codec `channels`: some channels whole, and the mean of every other channel.

Hong et al. (ICLR 2023) drop random channels of a norm's cached input.  In a dropped channel that equals its mean, the
gradient of a norm's input is scale/deviation * (g - mean g), as in their code.  The codec is for inputs that one norm
alone reads, also small ones.  Other values stay dense, as in the published code.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.plan.codecs.codec import INT64, Codec, Encoded, KeepRatio, elements_of

PLACES = "places"
"""Name of the encoded tensor with the positions of the kept channels."""
SLACK = 1e-4
"""Addend, in channels, of the number of dropped channels before rounding down: 0.7 of 10 channels are 7."""


def has_channels(x: ir.Value, channels: int) -> bool:
    """Whether `x` is [N, channels, ...]."""
    sizes = dims(x)
    return len(sizes) > 1 and isinstance(sizes[0], str) and sizes[1] == channels


def encode(op: Builder, x: ir.Value, ratio: KeepRatio | None) -> Encoded:
    """Return the kept channels [N, K, ...], their positions [K], and the means [1, C, 1, ...] over the batch.

    The K channels have the largest numbers of `ratio.order` [C]; K is C less floor((1 - ratio) * C), at least 1.
    """
    assert ratio is not None and ratio.order is not None
    places = kept_channels(op, ratio.order, ratio.own, int(dims(x)[1]))
    axes = [axis for axis in range(len(dims(x))) if axis != 1]
    return op.Gather(x, places, axis=1), places, op.ReduceMean(x, axes, keepdims=1)


def kept_channels(op: Builder, order: ir.Value, ratio: ir.Value | float, channels: int) -> ir.Value:
    """Return the positions [K] of the largest numbers of `order` [channels]."""
    dropped = op.Floor(op.Add(op.Mul(op.Sub(1.0, ratio), float(channels)), SLACK))
    count = op.Cast(op.Max(op.Sub(float(channels), dropped), 1.0), to=INT64)
    _, places = op.TopK(order, op.Unsqueeze(count, [0]))
    return places


def decode(op: Builder, encoded: Encoded, like: ir.Value) -> ir.Value:
    """Return the kept channels at their positions, and the mean of every other channel, in the shape of `like`."""
    kept, places, mean = encoded
    sizes = dims(like)
    none = np.zeros(int(sizes[1]), np.int64)
    numbers = op.Range(np.array(1), op.Add(op.Squeeze(op.Shape(places), [0]), np.array(1)), np.array(1))
    numbers = op.ScatterElements(none, places, numbers, axis=0)
    is_kept = op.Reshape(op.Greater(numbers, np.array(0)), [1, -1, *[1] * (len(sizes) - 2)])
    spread = op.Gather(kept, op.Max(op.Sub(numbers, np.array(1)), np.array(0)), axis=1)
    return op.Where(is_kept, spread, mean, like=like)


def nbytes(x: ir.Value, ratio: float) -> float:
    """Bytes of the kept channels of one sample; means and positions are 12 bytes a channel for the whole batch."""
    channels = int(dims(x)[1])
    return elements_of(x) * 4 * max(channels - int((1 - ratio) * channels + SLACK), 1) / channels


CODEC = Codec(
    name="channels",
    encode=encode,
    decode=decode,
    bytes=nbytes,
    error="dropped channels, but their mean",
    drops=True,
    parts=(PLACES, "mean"),
    takes=lambda x, weights: all(has_channels(x, weight) for weight in weights),
    alone=True,
    draws=True,
    one_size=False,
    least_bytes=0,
    others="dense",
)
