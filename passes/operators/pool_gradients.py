"""ttac operators for the gradients of pools: which tap won, and the positions that receive its gradient.

Measured on onnxruntime 1.19 (float32, [8, 64, 112, 112], 3x3, stride 2, one thread), as multiples of the MaxPool
alone.
* Forward, in addition: finding the tap by comparisons 4.3, the Indices output 5.8 and 0.4 more to make it one byte.
* Backward: ScatterElements 1.5, and from taps 2.2; a masked sum per tap and interleaving 3.5.
The byte per output that `MaxPoolTaps` keeps is an eighth of Indices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import Types, composite
from ttac.passes.graph.reshaping import after, pad_or_crop, reshape, zeros
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.windows import Window


def _taps_types(node: ir.Node) -> Types:
    y = node.inputs[1]
    assert y is not None
    return [(_code(Window.read(node)), y.shape)]


@composite("MaxPoolTaps", _taps_types)
def max_pool_taps(op: Builder, node: ir.Node) -> ir.Value:
    """x [N, C, ...], y = MaxPool(x) -> the number of the tap that won, row-major, one byte each.

    Attributes: the fields of `Window`. The first among equals wins: the sum counts the taps before the first tap that
    is not less than the maximum.
    """
    x, y = node.inputs
    assert x is not None and y is not None and y.dtype is not None
    window = Window.read(node)
    alive = count = None
    for tap in islice(_read_by_taps(op, after(op, x, y), window), math.prod(window.kernel) - 1):
        less = op.Less(tap, y)
        alive = less if alive is None else op.And(alive, less)
        one = op.Cast(alive, to=int(y.dtype))
        count = one if count is None else op.Add(count, one)
    return zeros(op, dims(y), _code(window), y) if count is None else op.Cast(count, to=int(_code(window)))


def _code(window: Window) -> ir.DataType:
    return ir.DataType.UINT8 if math.prod(window.kernel) <= 256 else ir.DataType.INT32


def _read_by_taps(op: Builder, x: ir.Value, window: Window) -> Iterator[ir.Value]:
    """Yield the elements that each tap reads at all output positions, [N, C, *outs].

    Outside of `x` a tap reads the lowest number. A strided Slice of the last axis copies single elements. So one
    Transpose first puts elements with the same remainder side by side. Then each tap is a Slice of whole rows, made
    when the caller asks for it.
    """
    assert x.dtype is not None
    stride, batch, channels = window.strides[-1], *dims(x)[:2]
    sizes = [*window.reach[:-1], -(-window.reach[-1] // stride) * stride]
    ends = [size - before - begin for size, before, begin in zip(sizes, window.sizes, window.begins, strict=True)]
    padded = pad_or_crop(op, x, window.begins, ends, window.axes, fill=float(np.finfo(x.dtype.numpy()).min))
    if stride > 1:
        rows = reshape(op, padded, [batch, channels, math.prod(sizes) // stride, stride])
        by_remainder = op.Transpose(rows, perm=[0, 1, 3, 2])
        padded = reshape(op, by_remainder, [batch, channels * stride, *sizes[:-1], sizes[-1] // stride])
    for tap in window.taps():
        starts = [position * dilation for position, dilation in zip(tap, window.dilations, strict=True)]
        remainder, starts[-1] = starts[-1] % stride, starts[-1] // stride
        steps = [stride, *window.strides[:-1], 1]
        stops = [a + (o - 1) * s + 1 for a, o, s in zip(starts, window.outs, steps[1:], strict=True)]
        axes = [1, *window.axes]
        yield op.Slice(padded, [remainder, *starts], [channels * stride, *stops], axes, steps)


def _scatter_types(node: ir.Node) -> Types:
    dy = node.inputs[0]
    assert dy is not None
    return [(dy.dtype, ir.Shape([*dims(dy)[:2], *node.attributes.get_ints("sizes")]))]


@composite("MaxPoolScatter", _scatter_types)
def max_pool_scatter(op: Builder, node: ir.Node) -> ir.Value:
    """dy [N, C, *outs], taps of `MaxPoolTaps` -> dx [N, C, *sizes]: each dy added at the position that its tap read."""
    dy, taps = node.inputs
    assert dy is not None and taps is not None
    window = Window.read(node)
    batch, channels = dims(dy)[:2]
    flat: list[int | str] = [batch, channels, math.prod(window.sizes)]
    positions: list[int | str] = [batch, channels, math.prod(window.outs)]
    index = reshape(op, _positions(op, taps, window), positions)
    ground = zeros(op, flat, dy.dtype, dy)
    summed = op.ScatterElements(ground, index, reshape(op, dy, positions), axis=2, reduction="add")
    return reshape(op, summed, [batch, channels, *window.sizes])


def _positions(op: Builder, taps: ir.Value, window: Window) -> ir.Value:
    """The position in the flattened input for each tap number, int32.

    The digits of a tap number, in the bases of the kernel, give its position: the sum of digit*dilation*pitch behind
    the first tap. With quotients q0 = t, q1 = q0 div k, ... in place of digits the position is the sum of q_i times a
    constant.
    """
    first = np.zeros(window.outs, np.int32)
    grids = np.meshgrid(*(np.arange(out) for out in window.outs), indexing="ij")
    quotient, pitch, carried = op.Cast(taps, to=int(ir.DataType.INT32)), 1, 0
    total = None
    for axis in reversed(range(len(window.kernel))):
        first += ((grids[axis] * window.strides[axis] - window.begins[axis]) * pitch).astype(np.int32)
        move = window.dilations[axis] * pitch
        if axis < len(window.kernel) - 1:
            quotient = op.Div(quotient, np.array(window.kernel[axis + 1], np.int32))
        if move != carried:
            part = quotient if move - carried == 1 else op.Mul(quotient, np.array(move - carried, np.int32))
            total = part if total is None else op.Add(total, part)
        carried, pitch = move * window.kernel[axis], pitch * window.sizes[axis]
    index = op.Add(total, first[None, None])
    if not any(window.begins) and max(window.overhang) <= 0:
        return index
    # Where every element is infinite or not a number, the tap may lie in the padding.
    return op.Clip(index, np.array(0, np.int32), np.array(math.prod(window.sizes) - 1, np.int32))


@composite("AveragePoolInputGrad", _scatter_types)
def average_pool_input_grad(op: Builder, node: ir.Node) -> ir.Value:
    """dy [N, C, *outs] -> dx [N, C, *sizes] of y = AveragePool(x).

    Attributes: the fields of `Window`, and `padded`: 1 if padding counts as elements.
    """
    dy = node.inputs[0]
    assert dy is not None and dy.dtype is not None
    window = Window.read(node)
    weight = 1.0 / _counts(window, bool(node.attributes.get_int("padded")))
    scale = weight.flat[0].item() if np.ptp(weight) == 0 else weight[None, None].astype(dy.dtype.numpy())
    scaled = op.Mul(dy, scale)
    apart = window.kernel == window.strides and set(window.dilations) == {1} and not any(window.begins)
    if apart and max(window.overhang) <= 0:
        return _repeated(op, scaled, window)
    ones = np.ones((int(dims(dy)[1]), 1, *window.kernel), dy.dtype.numpy())
    facts = {**window.attributes(), "group": int(dims(dy)[1]), "frozen": 1}
    return op.ConvInputGrad(scaled, ones, **facts)


def _counts(window: Window, padded: bool) -> np.ndarray:
    """Number of elements that each output averages: float64 [*outs]."""
    count = np.ones(window.outs)
    for axis, size in enumerate(window.sizes):
        reads = np.arange(window.outs[axis])[:, None] * window.strides[axis] - window.begins[axis]
        reads = reads + np.arange(window.kernel[axis]) * window.dilations[axis]
        inside = ((reads >= 0) & (reads < size)).sum(1) if not padded else np.full(len(reads), window.kernel[axis])
        shape = [-1 if other == axis else 1 for other in range(len(window.sizes))]
        count = count * np.maximum(inside, 1).reshape(shape)
    return count


def _repeated(op: Builder, dy: ir.Value, window: Window) -> ir.Value:
    """Windows side by side: each gradient goes to all elements of its window, and none to a remainder at the end."""
    scales = np.array([1, 1, *window.kernel], np.float32)
    asymmetric = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    spread = op.Resize(dy, None, scales, **asymmetric)
    spread.shape = ir.Shape([*dims(dy)[:2], *window.reach])
    return pad_or_crop(op, spread, [0] * len(window.axes), [-over for over in window.overhang], window.axes)
