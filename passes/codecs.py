"""How a value crosses from the forward to the backward: a save/restore pair for each way, with its bytes and its error.

Measured on onnxruntime 1.19, one x86-64 thread, as multiples of a float Relu on as many elements, save and restore:
int8 2.3 + 1.1; blocks with 30 % kept 4 + 2.5; fp16 9 + 8; sparse 45 + 40; the exact largest values (TopK) 80.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

import ttac.passes.bits  # noqa: F401  (registers PackBits and UnpackBits)
from ttac.passes.autodiff import dims
from ttac.passes.batch import sample_size
from ttac.passes.build import Builder

FLOAT, INT32, INT64, UINT8 = (int(getattr(ir.DataType, name)) for name in ("FLOAT", "INT32", "INT64", "UINT8"))
LARGEST_HALF = 65504.0
TINY = 1e-30
"""Added to scales, so that what is zero throughout divides by more than zero."""
GOLDEN, PERIOD = 40503, 65536
"""Their ratio is the golden one: its multiples fill an interval more evenly than random numbers do."""
BLOCK = 64
"""Elements of a block, about: below, moving blocks costs more than what is in them; above, they fit the data worse."""
SMALLEST_BLOCK = 8
SAMPLED = 16
"""One element in so many, at least LEAST_SAMPLED, bounds the threshold of `sparse`."""
LEAST_SAMPLED = 4096
CERTAIN = 4.0
"""Standard deviations of the sample's count that the bounds are apart, to either side."""

Saved = Sequence[ir.Value]
Reader = Callable[..., ir.Value]


class Wanted(NamedTuple):
    """What a codec that drops elements is asked for: the share of this value to keep, and the least share of any.

    Both are scalars in [0, 1]; where the least is 1, nothing of the whole net is dropped.
    """

    share: ir.Value
    least: ir.Value


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
    return op.UnpackBits(saved[0], shape=_open_shape(like))


def row_of(x: ir.Value) -> int:
    """Elements of a row of `x`: the map of one channel, the features of one token, or a whole sample [N, F]."""
    sizes = [int(size) for size in dims(x)[1:]]
    return math.prod(sizes[1:]) if len(sizes) > 1 else math.prod(sizes)


def _int8_save(op: Builder, x: ir.Value, wanted: Wanted | None) -> Saved:
    """Each row in 255 steps from its least to its largest value; 0 is one of the steps, so zeros stay zeros."""
    rows = _matrix(op, x, row_of(x))
    low, high = op.Min(op.ReduceMin(rows, [1], keepdims=0), 0.0), op.Max(op.ReduceMax(rows, [1], keepdims=0), 0.0)
    scale = _unless_finite(op, op.Add(op.Mul(op.Sub(high, low), 1 / 255), TINY), op.ReduceSum(rows, [1], keepdims=0))
    zero = op.Cast(op.Round(op.Div(op.Neg(low), scale)), to=UINT8)
    return op.QuantizeLinear(rows, scale, zero, axis=0), scale, zero


def _unless_finite(op: Builder, scale: ir.Value, witness: ir.Value) -> ir.Value:
    """`scale`, or NaN where `witness` is not finite: minimum, maximum and the bytes themselves do not tell."""
    return op.Add(scale, op.Mul(witness, 0.0), like=scale)


def _int8_restore(op: Builder, saved: Saved, like: ir.Value) -> ir.Value:
    return _like(op, op.DequantizeLinear(*saved, axis=0), like)


def block_of(x: ir.Value) -> int:
    """Elements of a block of `x`, at most about BLOCK: whole lines of a map where they fit, never over a row's end.

    0 where rows are too short to have blocks, and for [N, F], whose rows are not of one channel.
    """
    if len(dims(x)) < 3:
        return 0
    row, line = row_of(x), int(dims(x)[-1])
    fitting = [size for size in range(SMALLEST_BLOCK, 2 * BLOCK + 1) if row % size == 0]
    whole = [size for size in fitting if size % line == 0]
    return min(whole or fitting, key=lambda size: abs(size - BLOCK), default=0)


def _blocks_save(op: Builder, x: ir.Value, wanted: Wanted | None) -> Saved:
    """So many blocks, spread over the tensor, as int8 with a scale each and their places; of all blocks the mean.

    And how many of them are read element by element (`_blocks_affine`): all if nothing is dropped anywhere, else none.
    Which blocks they are must not depend on what is in them: the liveliest ones tell of a share of the data only, and a
    gradient made from them drifts (docs/decisions/sparse-residuals.md).
    """
    assert wanted is not None
    blocks = _matrix(op, x, block_of(x))
    mean = op.ReduceMean(blocks, [1], keepdims=0)
    places = _spread(op, op.Squeeze(op.Shape(mean), [0]), wanted.share)
    kept = _sized(op.Gather(blocks, places, axis=0), block_of(x))
    largest = op.ReduceMax(op.Abs(kept), [1], keepdims=0)
    scale = _unless_finite(op, op.Add(op.Mul(largest, 1 / 127), TINY), op.Gather(mean, places, axis=0))
    values = op.QuantizeLinear(kept, scale, _zeros(op, scale, np.int8), axis=0)
    single = op.Mul(op.Shape(places), op.Cast(op.GreaterOrEqual(wanted.least, 1.0), to=INT64))
    return values, scale, op.Unsqueeze(places, [1]), mean, single


def _spread(op: Builder, size: ir.Value, keep: ir.Value) -> ir.Value:
    """floor(keep*size) different numbers below `size`, in order: one somewhere in each of as many equal stretches.

    Where in its stretch, multiples of the golden ratio say, so that no period of the tensor's layout is met.
    """
    count = op.Cast(op.Floor(op.Mul(op.Cast(size, to=FLOAT), keep)), to=INT64)
    number = op.Range(np.array(0), count, np.array(1))
    some = op.Max(count, np.array(1))
    first = op.Div(op.Mul(number, size), some)
    width = op.Sub(op.Div(op.Mul(op.Add(number, np.array(1)), size), some), first)
    within = op.Mod(op.Mul(number, np.array(GOLDEN)), np.array(PERIOD))
    return op.Add(first, op.Div(op.Mul(within, width), np.array(PERIOD)))


def _blocks_of(op: Builder, values: ir.Value, scale: ir.Value) -> ir.Value:
    """The kept blocks as floats."""
    return op.DequantizeLinear(values, scale, _zeros(op, scale, np.int8), axis=0)


def _blocks_restore(op: Builder, saved: Saved, like: ir.Value) -> ir.Value:
    values, scale, places, mean, _ = saved
    kept = _blocks_of(op, values, scale)
    return _placed(op, mean, places, kept, like)


def _placed(op: Builder, mean: ir.Value, places: ir.Value, kept: ir.Value, like: ir.Value) -> ir.Value:
    """Blocks that are `mean` throughout, but those at `places`, which are `kept`; in the shape of `like`."""
    size = block_of(like)
    flat = op.Expand(op.Unsqueeze(mean, [1]), [1, size])
    flat.shape = ir.Shape([f"{_elements(like) // size}*N", size])
    return _like(op, op.ScatterND(flat, places, kept, like=flat), like)


def _blocks_dot(op: Builder, saved: Saved, like: ir.Value, g: ir.Value) -> ir.Value:
    """sum over all axes but the channel of g*x, [C], without x: sums of g's blocks, and products where x was kept."""
    values, scale, places, mean, _ = saved
    blocks = _matrix(op, g, block_of(like))
    kept = _blocks_of(op, values, scale)
    there = _sized(op.GatherND(blocks, places), block_of(like))
    dots = op.ReduceSum(op.Mul(there, kept, like=there), [1], keepdims=0)
    each = op.ScatterND(op.Mul(op.ReduceSum(blocks, [1], keepdims=0), mean), places, dots)
    return op.ReduceSum(op.ReduceSum(_by_channel(op, each, like), [2], keepdims=0), [0], keepdims=0)


def _blocks_affine(
    op: Builder, saved: Saved, like: ir.Value, slope: ir.Value, offset: ir.Value | None, plus: ir.Value | None = None
) -> ir.Value:
    """x*slope + offset per channel (+ `plus`), each block of x being its mean, whether it was kept or not.

    In a norm's gradient this map multiplies x with a sum (`_blocks_dot`) that is off by what was dropped.  Through kept
    blocks that error reaches all layers before; through means, hardly (docs/decisions/sparse-residuals.md).  If nothing
    is dropped anywhere, x is x.  The map is taken of means and scales before they spread.
    """
    values, scale, places, mean, single = saved
    values, scale, places = (op.Slice(part, [0], single, [0]) for part in (values, scale, places))
    channels, blocks = int(dims(like)[1]), row_of(like) // block_of(like)
    per_channel = op.Mul(_by_channel(op, mean, like), op.Unsqueeze(slope, [1]))
    channel = op.Mod(op.Div(op.Squeeze(places, [1]), blocks), channels)
    scaled = op.Mul(scale, op.Gather(slope, channel, axis=0), like=scale)
    kept = _blocks_of(op, values, scaled)
    if offset is not None:
        per_channel = op.Add(per_channel, op.Unsqueeze(offset, [1]))
        kept = op.Add(kept, op.Unsqueeze(op.Gather(offset, channel, axis=0), [1]), like=kept)
    means = op.Reshape(per_channel, [-1], like=mean)
    if plus is None:
        return _placed(op, means, places, _sized(kept, block_of(like)), like)
    dense = _matrix(op, plus, block_of(like))
    there = op.Add(op.GatherND(dense, places), kept, like=kept)
    spread = op.Add(dense, op.Unsqueeze(means, [1]), like=dense)
    return _like(op, op.ScatterND(spread, places, there, like=spread), like)


def _blocks_along(op: Builder, saved: Saved, like: ir.Value, g: ir.Value, power: ir.Value) -> ir.Value:
    """All of g that lies along what stands for x, row by row: x is brought to the mean square that it had, `power`.

    What stands for x is shorter than x, once in the sum and once in its elements, and without this a part of g along
    x remains (docs/decisions/sparse-residuals.md).
    """
    x, rows = _blocks_restore(op, saved, like), list(range(2, len(dims(like))))
    left = op.Div(power, op.Max(op.ReduceMean(op.Mul(x, x), rows, keepdims=1), TINY))
    return op.Mul(x, op.Mul(op.ReduceMean(op.Mul(g, x), rows, keepdims=1), left), like=like)


def _by_channel(op: Builder, each: ir.Value, like: ir.Value) -> ir.Value:
    """One number a block as [N, C, blocks of a row]."""
    channels, blocks = int(dims(like)[1]), row_of(like) // block_of(like)
    split = op.Reshape(each, [-1, channels, blocks])
    split.shape = ir.Shape([dims(like)[0], channels, blocks])
    return split


def _topk_save(op: Builder, x: ir.Value, wanted: Wanted | None) -> Saved:
    """The floor(keep * elements) largest magnitudes of the whole tensor, exactly (METHODS 6, 15)."""
    assert wanted is not None
    flat = op.Reshape(x, [-1])
    count = op.Cast(op.Floor(op.Mul(op.Cast(op.Shape(flat), to=FLOAT), wanted.share)), to=INT64)
    _, places = op.TopK(op.Abs(flat), count, sorted=0)
    # Where it puts what is not a number is open; added to all, that cannot get lost.
    kept = _unless_finite(op, op.Gather(flat, places, axis=0), op.ReduceSum(flat, keepdims=0))
    return kept, op.Unsqueeze(places, [1]), op.Shape(x)


def _topk_restore(op: Builder, saved: Saved, like: ir.Value) -> ir.Value:
    values, places, shape = saved
    size = op.ReduceProd(shape, [0], keepdims=1)
    blank = op.ConstantOfShape(size, value=ir.tensor(np.zeros(1, np.float32)))
    blank.shape = ir.Shape([f"{like.name}.elements"])
    return _like(op, op.ScatterND(blank, places, values), like)


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
    flat = op.Reshape(op.UnpackBits(bits, shape=_open_shape(like)), [-1])
    places = op.Transpose(op.NonZero(flat), perm=[1, 0])
    return _like(op, op.ScatterND(_zeros(op, flat, np.float32), places, values), like)


def _nonzero_save(op: Builder, x: ir.Value, wanted: Wanted | None) -> Saved:
    """Behind a Relu: what is not zero, and where."""
    mask = op.Not(op.Equal(x, 0.0))
    return op.Compress(op.Reshape(x, [-1]), op.Reshape(mask, [-1]), axis=0), op.PackBits(mask)


def _like(op: Builder, flat: ir.Value, like: ir.Value) -> ir.Value:
    """`flat` in the shape of `like`, whose batch the engine computes."""
    return op.Reshape(flat, _open_shape(like), like=like)


def _open_shape(x: ir.Value) -> list[int]:
    """The shape of `x`, -1 for its batch."""
    return [size if isinstance(size, int) else -1 for size in dims(x)]


def _matrix(op: Builder, x: ir.Value, columns: int) -> ir.Value:
    """`x` as rows of `columns` elements; how many depends on the batch."""
    rows = op.Reshape(x, [-1, columns])
    rows.shape = ir.Shape([f"{_elements(x) // columns}*N", columns])
    return rows


def _sized(x: ir.Value, columns: int) -> ir.Value:
    """`x` with its shape noted: rows whose number depends on the data."""
    x.shape = ir.Shape([f"{x.name}.rows", columns])
    return x


def _zeros(op: Builder, like: ir.Value, dtype: type) -> ir.Value:
    return op.ConstantOfShape(op.Shape(like), value=ir.tensor(np.zeros(1, dtype)), like=like)


def _coprime(step: int, row: int) -> int:
    """The least number from `step` on that shares no factor with `row`, so that samples fall on all columns."""
    return next(size for size in range(step, 2 * step + row) if math.gcd(size, row) == 1)


def _elements(x: ir.Value) -> int:
    assert x.shape is not None
    return sample_size(x.shape)


def _block_bytes(x: ir.Value, keep: float) -> float:
    """A byte for each kept element, scale and place for each kept block, a mean for each block; and a number."""
    blocks = _elements(x) / block_of(x)
    return blocks * (keep * (block_of(x) + 4 + 8) + 4) + 8


CODECS = {
    codec.name: codec
    for codec in (
        Codec("dense", _dense_save, _dense_restore, lambda x, _: 4 * _elements(x), "none", "all", 0.0),
        Codec(
            "fp16",
            _half_save,
            _half_restore,
            lambda x, _: 2 * _elements(x),
            "2^-11 of each value; clipped at 65504",
            "what does not read the value",
            17.0,
        ),
        Codec("bits", _bits_save, _bits_restore, lambda x, _: _elements(x) / 8, "none", "all", 6.5),
        Codec(
            "int8",
            _int8_save,
            _int8_restore,
            lambda x, _: _elements(x) * (1 + 5 / row_of(x)),
            "1/510 of the range of its row",
            "what does not read the value",
            3.4,
            parts=("scale", "zero"),
        ),
        Codec(
            "blocks",
            _blocks_save,
            _blocks_restore,
            _block_bytes,
            "kept blocks 1/254 of their largest magnitude; dropped ones, and in an affine map all, but their mean",
            "what does not read the value",
            6.5,
            drops=True,
            parts=("scale", "places", "mean", "single"),
            readers={"ChannelDot": _blocks_dot, "ChannelAffine": _blocks_affine, "Along": _blocks_along},
        ),
        Codec(
            "sparse",
            _sparse_save,
            _sparse_restore,
            lambda x, keep: _elements(x) * (4 * keep + 1 / 8),
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
            lambda x, keep: _elements(x) * keep * 12,
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
            lambda x, keep: _elements(x) * (4 * keep + 1 / 8),
            "none",
            "all",
            85.0,
            parts=("bits",),
        ),
    )
}
