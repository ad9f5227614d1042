"""Blocks of neighbouring elements: a share of them kept, of all the mean, and what can be computed from that.

Which blocks are kept, what reads them, and what it costs in error: docs/decisions/sparse-residuals.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims, sample_size

FLOAT, INT64, UINT8 = (int(getattr(ir.DataType, name)) for name in ("FLOAT", "INT64", "UINT8"))
TINY = 1e-30
"""Added to scales, so that what is zero throughout divides by more than zero."""
GOLDEN, PERIOD = 40503, 65536
"""Their ratio is the golden one: its multiples fill an interval more evenly than random numbers do."""
BLOCK = 64
"""Elements of a block, about: below, moving blocks costs more than what is in them; above, they fit the data worse."""
SMALLEST_BLOCK = 8
STUDIED = 16
"""One block in so many, if as many are kept, tells how far x is from its block's mean where the gradient passes."""
FEW = 4.0
"""Elements, about, below which that is not believed."""
LONGEST = 4.0
"""What stands for x is lengthened to no more than this times its variance."""

Saved = Sequence[ir.Value]


class Wanted(NamedTuple):
    """What a codec that drops elements is asked for: the share of this value to keep, and the least share of any.

    Both are scalars in [0, 1]; where the least is 1, nothing of the whole net is dropped.
    """

    share: ir.Value
    least: ir.Value


def row_of(x: ir.Value) -> int:
    """Elements of a row of `x`: the map of one channel, the features of one token, or a whole sample [N, F]."""
    sizes = [int(size) for size in dims(x)[1:]]
    return math.prod(sizes[1:]) if len(sizes) > 1 else math.prod(sizes)


def unless_finite(op: Builder, scale: ir.Value, witness: ir.Value) -> ir.Value:
    """`scale`, or NaN where `witness` is not finite: minimum, maximum and the bytes themselves do not tell."""
    return op.Add(scale, op.Mul(witness, 0.0), like=scale)


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


def save(op: Builder, x: ir.Value, wanted: Wanted | None) -> Saved:
    """So many blocks, spread over the tensor, as int8 with a scale each and their places; of all blocks the mean.

    And how many of them are read element by element (`affine`): all if nothing is dropped anywhere, else none.
    Which blocks they are must not depend on what is in them: the liveliest ones tell of a share of the data only, and a
    gradient made from them drifts (docs/decisions/sparse-residuals.md).
    """
    assert wanted is not None
    blocks = matrix(op, x, block_of(x))
    mean = op.ReduceMean(blocks, [1], keepdims=0)
    places = _spread(op, op.Squeeze(op.Shape(mean), [0]), wanted.share)
    kept = sized(op.Gather(blocks, places, axis=0), block_of(x))
    largest = op.ReduceMax(op.Abs(kept), [1], keepdims=0)
    scale = unless_finite(op, op.Add(op.Mul(largest, 1 / 127), TINY), op.Gather(mean, places, axis=0))
    values = op.QuantizeLinear(kept, scale, zeros(op, scale, np.int8), axis=0)
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
    return op.DequantizeLinear(values, scale, zeros(op, scale, np.int8), axis=0)


def restore(op: Builder, saved: Saved, like: ir.Value) -> ir.Value:
    """Kept blocks, and the mean of each other; in the shape of `like`."""
    values, scale, places, mean, *_ = saved
    kept = _blocks_of(op, values, scale)
    return _placed(op, mean, places, kept, like)


def _placed(
    op: Builder, mean: ir.Value, places: ir.Value, kept: ir.Value, like: ir.Value, plus: ir.Value | None = None
) -> ir.Value:
    """Blocks that are `mean` throughout (+ `plus`), but those at `places`, which are `kept`; in the shape of `like`."""
    size = block_of(like)
    column = op.Unsqueeze(mean, [1])
    flat = op.Expand(column, [1, size]) if plus is None else op.Add(plus, column)
    flat.shape = ir.Shape([f"{elements_of(like) // size}*N", size])
    return shaped_like(op, op.ScatterND(flat, places, kept, like=flat), like)


def study(op: Builder, saved: Saved, like: ir.Value, g: ir.Value) -> Saved:
    """1 where g is zero, uint8 [blocks, elements]; that part of each block; of x in its blocks, rise and variance [C].

    The rise is how much higher x is where g is not zero, by least squares over some of the kept blocks.  A Relu behind
    x stops g where x is low: of what lies in x's direction within a block, most is there.
    """
    values, scale, places, mean, _ = saved
    size = block_of(like)
    stopped = op.Cast(op.Equal(matrix(op, g, size), 0.0), to=UINT8)
    count = op.MatMulInteger(stopped, np.ones((size, 1), np.uint8))
    part = op.Squeeze(op.Mul(op.Cast(count, to=FLOAT), 1.0 / size), [1])
    every = op.Max(op.Div(op.Mul(op.Shape(places, start=0, end=1), np.array([STUDIED])), op.Shape(mean)), np.array([1]))
    values, scale, places = (op.Slice(each, [0], [2**62], [0], every) for each in (values, scale, places))
    x = op.Sub(_blocks_of(op, values, scale), op.Unsqueeze(op.GatherND(mean, places), [1]))
    there = op.Cast(op.GatherND(stopped, places), to=FLOAT)
    low = op.Neg(op.ReduceSum(op.Mul(sized(x, size), sized(there, size), like=x), [1], keepdims=0))
    where = op.GatherND(part, places)
    both = op.Mul(op.Mul(where, op.Sub(1.0, where)), float(size))
    told = [low, both, op.ReduceSumSquare(x, [1], keepdims=0), op.Add(zeros(op, low, np.float32), float(size))]
    lift, fit, square, seen = _sums(op, told, places, mean, like)
    return stopped, part, op.Div(lift, op.Add(fit, FEW)), op.Div(square, op.Max(seen, 1.0))


def _sums(op: Builder, told: Saved, places: ir.Value, mean: ir.Value, like: ir.Value) -> Saved:
    """Each of the numbers `told` of the blocks at `places`, summed over each channel, [C]."""
    channels, blocks, columns = int(dims(like)[1]), row_of(like) // block_of(like), len(told)
    rows = op.Concat(*(op.Unsqueeze(each, [1]) for each in told), axis=1)
    size = op.Concat(op.Shape(mean), np.array([columns]), axis=0)
    every = op.ScatterND(op.ConstantOfShape(size, value=ir.tensor(np.zeros(1, np.float32))), places, rows)
    split = op.Reshape(every, [-1, channels, blocks, columns])
    split.shape = ir.Shape([dims(like)[0], channels, blocks, columns])
    sums = op.ReduceSum(op.ReduceSum(split, [2], keepdims=0), [0], keepdims=0)
    return [op.Squeeze(each, [1]) for each in op.Split(sums, [1] * columns, axis=1, outputs=columns)]


def dot(op: Builder, saved: Saved, like: ir.Value, g: ir.Value) -> ir.Value:
    """sum over all axes but the channel of g*x, [C], without x: sums of g's blocks, and products where x was kept.

    With `study`: all of a block's g is where it is not zero, and there a dropped x is above its mean by rise * part.
    """
    values, scale, places, mean, _, *studied = saved
    blocks = matrix(op, g, block_of(like))
    kept = _blocks_of(op, values, scale)
    there = sized(op.GatherND(blocks, places), block_of(like))
    dots = op.ReduceSum(op.Mul(there, kept, like=there), [1], keepdims=0)
    total = op.ReduceSum(blocks, [1], keepdims=0)
    if studied:
        _, part, rise, _ = studied
        above = op.Mul(_by_channel(op, part, like), op.Unsqueeze(rise, [1]))
        mean = op.Add(mean, op.Reshape(above, [-1], like=mean))
    each = op.ScatterND(op.Mul(total, mean), places, dots)
    return op.ReduceSum(op.ReduceSum(_by_channel(op, each, like), [2], keepdims=0), [0], keepdims=0)


def affine(
    op: Builder, saved: Saved, like: ir.Value, slope: ir.Value, offset: ir.Value | None, plus: ir.Value | None = None
) -> ir.Value:
    """x*slope + offset per channel (+ `plus`), each block of x being its mean, whether it was kept or not.

    In a norm's gradient this map multiplies x with a sum (`dot`) that is off by what was dropped.  Through kept blocks
    that error reaches all layers before; through means, hardly (docs/decisions/sparse-residuals.md).  With `study`, a
    block has two levels instead (`_levels`).  If nothing is dropped anywhere, x is x.  The map is taken of means and
    scales before they spread.
    """
    values, scale, places, mean, single, *studied = saved
    values, scale, places = (op.Slice(part, [0], single, [0]) for part in (values, scale, places))
    channels, blocks = int(dims(like)[1]), row_of(like) // block_of(like)
    channel = op.Mod(op.Div(op.Squeeze(places, [1]), blocks), channels)
    scaled = op.Mul(scale, op.Gather(slope, channel, axis=0), like=scale)
    kept = _blocks_of(op, values, scaled)
    if offset is not None:
        kept = op.Add(kept, op.Unsqueeze(op.Gather(offset, channel, axis=0), [1]), like=kept)
    stands, fall = _by_channel(op, mean, like), None
    if studied:
        stands, slope, offset, fall = _levels(op, stands, studied, like, slope, offset, single)
    per_channel = op.Mul(stands, op.Unsqueeze(slope, [1]))
    if offset is not None:
        per_channel = op.Add(per_channel, op.Unsqueeze(offset, [1]))
    means = op.Reshape(per_channel, [-1], like=mean)
    lower = None
    if fall is not None:
        lower = op.DequantizeLinear(studied[0], _each_block(op, fall, mean, like), zeros(op, mean, np.uint8), axis=0)
    if plus is None:
        return _placed(op, means, places, sized(kept, block_of(like)), like, lower)
    dense = matrix(op, plus, block_of(like))
    there = op.Add(op.GatherND(dense, places), kept, like=kept)
    spread = op.Add(dense, op.Unsqueeze(means, [1]), like=dense)
    spread = op.Add(spread, lower, like=spread) if lower is not None else spread
    return shaped_like(op, op.ScatterND(spread, places, there, like=spread), like)


def _each_block(op: Builder, vector: ir.Value, mean: ir.Value, like: ir.Value) -> ir.Value:
    """One number a channel, [C], for each of its blocks."""
    spread = op.Add(_by_channel(op, zeros(op, mean, np.float32), like), op.Unsqueeze(vector, [1]))
    return op.Reshape(spread, [-1], like=mean)


def _levels(
    op: Builder,
    mean: ir.Value,
    studied: Saved,
    like: ir.Value,
    slope: ir.Value,
    offset: ir.Value | None,
    single: ir.Value,
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
    """For x*slope + offset: what stands for x where g passes, slope and offset that bring it to x's variance, the fall.

    The fall is by how much less the map gives where g is stopped, [C].  What stands for x is shorter than x; unless it
    is brought to x's length, a part of g along x remains in all layers' gradients.
    """
    _, part, rise, within = studied
    split = _by_channel(op, part, like)
    centre = _average(op, mean)
    away = op.Sub(mean, op.Unsqueeze(centre, [1]))
    between = _average(op, op.Mul(away, away))
    told = op.Min(op.Mul(_average(op, op.Mul(split, op.Sub(1.0, split))), op.Mul(rise, rise)), within)
    longer = op.Div(op.Add(between, within), op.Max(op.Add(between, told), TINY))
    longer = op.Where(op.Greater(single, np.array([0])), 1.0, op.Max(op.Min(longer, LONGEST), 1.0))
    slopes = op.Mul(slope, longer)
    shift = op.Mul(op.Sub(slope, slopes), centre)
    passing = op.Add(mean, op.Mul(split, op.Unsqueeze(rise, [1])))
    return passing, slopes, op.Add(offset, shift) if offset is not None else shift, op.Neg(op.Mul(slopes, rise))


def _average(op: Builder, each: ir.Value) -> ir.Value:
    """[N, C, blocks] -> the mean of each channel, [C]."""
    return op.ReduceMean(op.ReduceMean(each, [2], keepdims=0), [0], keepdims=0)


def along(op: Builder, saved: Saved, like: ir.Value, g: ir.Value, power: ir.Value) -> ir.Value:
    """All of g that lies along what stands for x, row by row: x is brought to the mean square that it had, `power`.

    What stands for x is shorter than x, once in the sum and once in its elements, and without this a part of g along
    x remains (docs/decisions/sparse-residuals.md).
    """
    x, rows = restore(op, saved, like), list(range(2, len(dims(like))))
    left = op.Div(power, op.Max(op.ReduceMean(op.Mul(x, x), rows, keepdims=1), TINY))
    return op.Mul(x, op.Mul(op.ReduceMean(op.Mul(g, x), rows, keepdims=1), left), like=like)


def _by_channel(op: Builder, each: ir.Value, like: ir.Value) -> ir.Value:
    """One number a block as [N, C, blocks of a row]."""
    channels, blocks = int(dims(like)[1]), row_of(like) // block_of(like)
    split = op.Reshape(each, [-1, channels, blocks])
    split.shape = ir.Shape([dims(like)[0], channels, blocks])
    return split


def shaped_like(op: Builder, flat: ir.Value, like: ir.Value) -> ir.Value:
    """`flat` in the shape of `like`, whose batch the engine computes."""
    return op.Reshape(flat, open_shape(like), like=like)


def open_shape(x: ir.Value) -> list[int]:
    """The shape of `x`, -1 for its batch."""
    return [size if isinstance(size, int) else -1 for size in dims(x)]


def matrix(op: Builder, x: ir.Value, columns: int) -> ir.Value:
    """`x` as rows of `columns` elements; how many depends on the batch."""
    rows = op.Reshape(x, [-1, columns])
    rows.shape = ir.Shape([f"{elements_of(x) // columns}*N", columns])
    return rows


def sized(x: ir.Value, columns: int) -> ir.Value:
    """`x` with its shape noted: rows whose number depends on the data."""
    x.shape = ir.Shape([f"{x.name}.rows", columns])
    return x


def zeros(op: Builder, like: ir.Value, dtype: type) -> ir.Value:
    """Zeros in the shape of `like`."""
    return op.ConstantOfShape(op.Shape(like), value=ir.tensor(np.zeros(1, dtype)), like=like)


def elements_of(x: ir.Value) -> int:
    """Elements of one sample of `x`."""
    assert x.shape is not None
    return sample_size(x.shape)


def block_bytes(x: ir.Value, keep: float) -> float:
    """A byte for each kept element, scale and place for each kept block, a mean for each block; and a number."""
    blocks = elements_of(x) / block_of(x)
    return blocks * (keep * (block_of(x) + 4 + 8) + 4) + 8
