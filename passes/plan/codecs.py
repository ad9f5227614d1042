"""How a value crosses from the forward to the backward: a save/restore pair for each way, with its bytes and its error.

Measured on onnxruntime 1.19, one x86-64 thread, as multiples of a float Relu on as many elements, save and restore:
int8 2.3 + 1.1; blocks with 30 % kept 4 + 2.5; fp16 9 + 8; sparse 45 + 40; the exact largest values (TopK) 80.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

import ttac.passes.operators.bitmask  # noqa: F401  (registers PackBits and UnpackBits)
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.plan import blocks
from ttac.passes.plan.blocks import (
    FLOAT,
    INT64,
    TINY,
    UINT8,
    Saved,
    Wanted,
    elements_of,
    matrix,
    open_shape,
    row_of,
    shaped_like,
    unless_finite,
    zeros,
)

INT32 = int(ir.DataType.INT32)

LARGEST_HALF = 65504.0
SAMPLED = 16
"""One element in so many, at least LEAST_SAMPLED, bounds the threshold of `sparse`."""
LEAST_SAMPLED = 4096
CERTAIN = 4.0
"""Standard deviations of the sample's count that the bounds are apart, to either side."""

Reader = Callable[..., ir.Value]


@dataclass(frozen=True)
class Codec:
    """One way to keep a value x for the backward.

    Attributes:
        save: the tensors the forward hands over, built from x and, where `drops`, what is wanted of it.
        restore: x, or what stands for it, from those tensors; `like` has x's type and shape.
        bytes: of one sample of x, with the share `keep` of its elements kept.
        error: how far the restored value may be off; exact_for: the gradients that stay what they were.
        cost: time of both, as a multiple of a float Relu on as many elements.
        drops: whether it keeps a share of the elements only.
        parts: what the tensors behind the first are.
        readers: functions of x that need no x restored: by operator, (op, saved, like, other inputs...) -> its output
            or, where something is dropped, what stands for it.
        study: (op, saved, like, g) -> what the g of a ChannelDot tells of the dropped elements of x; its readers, and
            those behind it, take that as more of what was saved.
    """

    name: str
    save: Callable[[Builder, ir.Value, Wanted | None], Saved]
    restore: Callable[[Builder, Saved, ir.Value], ir.Value]
    bytes: Callable[[ir.Value, float], float]
    error: str
    exact_for: str
    cost: float
    drops: bool = False
    parts: tuple[str, ...] = ()
    readers: Mapping[str, Reader] = field(default_factory=dict)
    study: Callable[[Builder, Saved, ir.Value, ir.Value], Saved] | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the restored value is the value."""
        return self.error == "none"


def _dense_save(op: Builder, x: ir.Value, wanted: Wanted | None) -> Saved:
    return (x,)


def _dense_restore(op: Builder, saved: Saved, like: ir.Value) -> ir.Value:
    return saved[0]


def _half_save(op: Builder, x: ir.Value, wanted: Wanted | None) -> Saved:
    """Clipped to what float16 can hold; what was infinite before becomes NaN, for it must not pass for a number."""
    clipped = op.Add(op.Clip(x, -LARGEST_HALF, LARGEST_HALF), op.Mul(x, 0.0))
    return (op.Cast(clipped, to=int(ir.DataType.FLOAT16)),)


def _half_restore(op: Builder, saved: Saved, like: ir.Value) -> ir.Value:
    return op.Cast(saved[0], to=FLOAT)


def _bits_save(op: Builder, x: ir.Value, wanted: Wanted | None) -> Saved:
    return (op.PackBits(x),)


def _bits_restore(op: Builder, saved: Saved, like: ir.Value) -> ir.Value:
    return op.UnpackBits(saved[0], shape=open_shape(like))


def _int8_save(op: Builder, x: ir.Value, wanted: Wanted | None) -> Saved:
    """Each row in 255 steps from its least to its largest value; 0 is one of the steps, so zeros stay zeros."""
    rows = matrix(op, x, row_of(x))
    low, high = op.Min(op.ReduceMin(rows, [1], keepdims=0), 0.0), op.Max(op.ReduceMax(rows, [1], keepdims=0), 0.0)
    scale = unless_finite(op, op.Add(op.Mul(op.Sub(high, low), 1 / 255), TINY), op.ReduceSum(rows, [1], keepdims=0))
    zero = op.Cast(op.Round(op.Div(op.Neg(low), scale)), to=UINT8)
    return op.QuantizeLinear(rows, scale, zero, axis=0), scale, zero


def _int8_restore(op: Builder, saved: Saved, like: ir.Value) -> ir.Value:
    return shaped_like(op, op.DequantizeLinear(*saved, axis=0), like)


def _topk_save(op: Builder, x: ir.Value, wanted: Wanted | None) -> Saved:
    """The floor(keep * elements) largest magnitudes of the whole tensor, exactly (METHODS 6, 15)."""
    assert wanted is not None
    flat = op.Reshape(x, [-1])
    count = op.Cast(op.Floor(op.Mul(op.Cast(op.Shape(flat), to=FLOAT), wanted.share)), to=INT64)
    _, places = op.TopK(op.Abs(flat), count, sorted=0)
    # Where it puts what is not a number is open; added to all, that cannot get lost.
    kept = unless_finite(op, op.Gather(flat, places, axis=0), op.ReduceSum(flat, keepdims=0))
    return kept, op.Unsqueeze(places, [1]), op.Shape(x)


def _topk_restore(op: Builder, saved: Saved, like: ir.Value) -> ir.Value:
    values, places, shape = saved
    size = op.ReduceProd(shape, [0], keepdims=1)
    blank = op.ConstantOfShape(size, value=ir.tensor(np.zeros(1, np.float32)))
    blank.shape = ir.Shape([f"{like.name}.elements"])
    return shaped_like(op, op.ScatterND(blank, places, values), like)


def _sparse_save(op: Builder, x: ir.Value, wanted: Wanted | None) -> Saved:
    """The floor(keep * elements) largest magnitudes but for ties, which go: what lies above a threshold.

    In a large tensor a sample of the elements tells two bounds that the threshold almost surely lies between, and the
    few elements between them decide.
    """
    assert wanted is not None
    flat = op.Abs(op.Reshape(x, [-1]))
    if math.prod(int(size) for size in dims(x)[1:]) >= SAMPLED * LEAST_SAMPLED:
        threshold = _between_bounds(op, flat, _coprime(SAMPLED, row_of(x)), wanted.share)
    else:
        threshold = _first_dropped(op, flat, op.Mul(op.Cast(op.Shape(flat), to=FLOAT), wanted.share))
    # Everything is asked for where no element is left below the threshold.
    threshold = op.Where(op.Less(wanted.share, 1.0), threshold, -1.0)
    # What is not a number is not below either.
    mask = op.Not(op.LessOrEqual(op.Abs(x), threshold))
    kept = op.Compress(op.Reshape(x, [-1]), op.Reshape(mask, [-1]), axis=0)
    return kept, op.PackBits(mask)


def _first_dropped(op: Builder, flat: ir.Value, count: ir.Value) -> ir.Value:
    """The largest of `flat` behind the floor(count) largest, a scalar; the least if that are all."""
    size = op.Cast(op.Shape(flat), to=FLOAT)
    wanted = op.Min(op.Add(op.Floor(op.Max(count, 0.0)), 1.0), size)
    largest, _ = op.TopK(flat, op.Cast(wanted, to=INT64))
    return op.Squeeze(op.Slice(largest, [-1], [2**62], [0]), [0])


def _between_bounds(op: Builder, flat: ir.Value, every: int, keep: ir.Value) -> ir.Value:
    """The threshold above which `keep` of `flat` lie, a scalar, from one element in `every` and those nearby."""
    some = op.Slice(flat, [0], [2**62], [0], [every])
    size = op.Cast(op.Shape(some), to=FLOAT)
    spread = op.Mul(op.Sqrt(op.Mul(op.Mul(keep, op.Sub(1.0, keep)), size)), CERTAIN)
    middle = op.Mul(size, keep)
    low = _first_dropped(op, some, op.Add(middle, op.Add(spread, 1.0)))
    high = _first_dropped(op, some, op.Sub(middle, op.Add(spread, 1.0)))
    above = op.Greater(flat, high)
    near = op.Compress(flat, op.And(op.GreaterOrEqual(flat, low), op.Not(above)), axis=0)
    count = op.Cast(op.ReduceSum(op.Cast(above, to=INT32), [0], keepdims=1), to=FLOAT)
    wanted = op.Floor(op.Mul(op.Cast(op.Shape(flat), to=FLOAT), keep))
    return _first_dropped(op, near, op.Sub(wanted, count))


def _sparse_restore(op: Builder, saved: Saved, like: ir.Value) -> ir.Value:
    values, bits = saved
    flat = op.Reshape(op.UnpackBits(bits, shape=open_shape(like)), [-1])
    places = op.Transpose(op.NonZero(flat), perm=[1, 0])
    return shaped_like(op, op.ScatterND(zeros(op, flat, np.float32), places, values), like)


def _nonzero_save(op: Builder, x: ir.Value, wanted: Wanted | None) -> Saved:
    """Behind a Relu: what is not zero, and where."""
    mask = op.Not(op.Equal(x, 0.0))
    return op.Compress(op.Reshape(x, [-1]), op.Reshape(mask, [-1]), axis=0), op.PackBits(mask)


def _coprime(step: int, row: int) -> int:
    """The least number from `step` on that shares no factor with `row`, so that samples fall on all columns."""
    return next(size for size in range(step, 2 * step + row) if math.gcd(size, row) == 1)


BLOCKS = ("scale", "places", "mean", "single")
READERS: Mapping[str, Reader] = {"ChannelDot": blocks.dot, "ChannelAffine": blocks.affine, "Along": blocks.along}

CODECS = {
    codec.name: codec
    for codec in (
        Codec("dense", _dense_save, _dense_restore, lambda x, _: 4 * elements_of(x), "none", "all", 0.0),
        Codec(
            "fp16",
            _half_save,
            _half_restore,
            lambda x, _: 2 * elements_of(x),
            "2^-11 of each value; clipped at 65504",
            "what does not read the value",
            17.0,
        ),
        Codec("bits", _bits_save, _bits_restore, lambda x, _: elements_of(x) / 8, "none", "all", 6.5),
        Codec(
            "int8",
            _int8_save,
            _int8_restore,
            lambda x, _: elements_of(x) * (1 + 5 / row_of(x)),
            "1/510 of the range of its row",
            "what does not read the value",
            3.4,
            parts=("scale", "zero"),
        ),
        Codec(
            "blocks",
            blocks.save,
            blocks.restore,
            blocks.block_bytes,
            "kept blocks 1/254 of their largest magnitude; dropped ones, and in an affine map all, but their mean",
            "what does not read the value",
            6.5,
            drops=True,
            parts=BLOCKS,
            readers=READERS,
        ),
        Codec(
            "levels",
            blocks.save,
            blocks.restore,
            blocks.block_bytes,
            "as of blocks, but in sums and affine maps two levels: where a gradient is zero and where it is not",
            "what does not read the value",
            12.0,
            drops=True,
            parts=BLOCKS,
            readers=READERS,
            study=blocks.study,
        ),
        Codec(
            "sparse",
            _sparse_save,
            _sparse_restore,
            lambda x, keep: elements_of(x) * (4 * keep + 1 / 8),
            "dropped elements wholly",
            "what does not read the value",
            85.0,
            drops=True,
            parts=("bits",),
        ),
        Codec(
            "topk",
            _topk_save,
            _topk_restore,
            lambda x, keep: elements_of(x) * keep * 12,
            "dropped elements wholly",
            "what does not read the value",
            90.0,
            drops=True,
            parts=("places", "shape"),
        ),
        Codec(
            "nonzero",
            _nonzero_save,
            _sparse_restore,
            lambda x, keep: elements_of(x) * (4 * keep + 1 / 8),
            "none",
            "all",
            85.0,
            parts=("bits",),
        ),
    )
}
