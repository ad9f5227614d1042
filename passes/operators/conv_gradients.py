"""ttac operators for the two gradients of a convolution, expanded into the fastest standard operators.

Measured on onnxruntime 1.19 (float32, batch 8, one and two threads), as multiples of the forward Conv.
* Input gradient, 3x3, stride 1: Conv with the flipped kernel 1.0, ConvTranspose 1.3 (depthwise 2.3 and more).
* 3x3, stride 2: ConvTranspose 0.8-1.2 (depthwise 5x5: 2.5), one Conv for all phases and DepthToSpace 1.7-3.4, a Conv
  per phase 1.2-4.5, Conv over interleaved zeros 2.6-4.2.
* 1x1: ConvTranspose 0.5-1.0, without a second copy of the kernel; Conv 0.8-1.3 with the kernel in the graph. With fed
  weights (`lower.fed_weights`) Conv wins: a step of ResNet-50, MobileNetV2 and ResNeXt-29 took 2-8 % less. With a
  trained kernel, transposed in every step, Conv takes 0.7-0.9 of ConvTranspose (ResNeXt-29).
* 1x1, stride 2: ConvTranspose 0.6-0.7, Conv and interleave 1.5-2.3.
* Forward and backward of ResNet-50 and MobileNetV2 as a whole: 1x1 either way the same; ConvTranspose for everything
  1.02-1.04 and 1.2-1.4 (the depthwise kernels, whose second copies are small).
* Weight gradient: one MatMul per tap 0.6-1.9 (with 3 input channels 6.9), one MatMul for all taps 0.6-2.0 (3.1), Conv
  over transposed tensors 1.9-11.7.
* Weight gradient in groups (ResNeXt-29, 32 of 4 to 16 channels, one thread): all taps 2.3-4.7 with x transposed, one
  tap 1.9-3.9 with dy transposed instead, in a ninth of the memory. One product over all samples takes 0.9 of this
  where the weights are the largest (512 by 1024 channels at 8x8), 2-6 times elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import Types, composite
from ttac.passes.graph.reshaping import pad_or_crop, reshape
from ttac.passes.graph.rewire import initializer
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.windows import Window


def _input_grad_types(node: ir.Node) -> Types:
    dy, w = node.inputs
    assert dy is not None and w is not None
    channels = int(dims(w)[1]) * node.attributes.get_int("group")
    return [(dy.dtype, ir.Shape([dims(dy)[0], channels, *node.attributes.get_ints("sizes")]))]


@composite("ConvInputGrad", _input_grad_types)
def conv_input_grad(op: Builder, node: ir.Node) -> ir.Value:
    """dy [N, O, ...], w [O, C/group, ...] -> dx [N, C, *sizes] of y = Conv(x, w).

    Attributes: the fields of `Window`, `group`, and `frozen`. `frozen` is 1 if `w` never changes: then the compile
    computes everything that depends on its initializer alone.
    """
    dy, w = node.inputs
    assert dy is not None and w is not None
    window, group = Window.read(node), node.attributes.get_int("group")
    frozen = bool(node.attributes.get_int("frozen"))
    if any(stride > 1 for stride in window.strides):
        return _transposed(op, dy, w, window, group)
    return _flipped(op, dy, kernel_flipped(op, w, group, frozen), window, group)


def _transposed(op: Builder, dy: ir.Value, w: ir.Value, window: Window, group: int) -> ir.Value:
    """Return dx by ConvTranspose.

    `output_padding` returns zeros for inputs behind the last window, which nothing reads.
    """
    ends = [max(0, over) for over in window.overhang]
    remainder = [max(0, -over) for over in window.overhang]
    extra = {"output_padding": remainder} if any(remainder) else {}
    return op.ConvTranspose(
        dy,
        w,
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        pads=[*window.begins, *ends],
        group=group,
        **extra,
    )


def _flipped(op: Builder, dy: ir.Value, kernel: ir.Value, window: Window, group: int) -> ir.Value:
    """Return dx of stride 1 by Conv with the flipped kernel.

    Where the forward pads beyond its kernel, crop `dy` instead.
    """
    begins = [extent - 1 - begin for extent, begin in zip(window.extents, window.begins, strict=True)]
    ends = [extent - 1 - over for extent, over in zip(window.extents, window.overhang, strict=True)]
    dy = pad_or_crop(op, dy, [min(0, pad) for pad in begins], [min(0, pad) for pad in ends], window.axes)
    return op.Conv(
        dy,
        kernel,
        kernel_shape=window.kernel,
        dilations=window.dilations,
        pads=[max(0, pad) for pad in (*begins, *ends)],
        group=group,
    )


def kernel_flipped(op: Builder, w: ir.Value, group: int, frozen: bool) -> ir.Value:
    """w [O, C/group, ...] -> [C, O/group, ...]: taps reversed, and inputs and outputs exchanged in each group."""
    shape = [int(size) for size in dims(w)]
    split = [group, shape[0] // group, *shape[1:]]
    order = [0, 2, 1, *range(3, len(split))]
    joined = [group * shape[1], shape[0] // group, *shape[2:]]
    axes = list(range(2, len(shape)))
    if frozen and w.const_value is not None and not w.is_graph_input():
        array = np.flip(w.const_value.numpy(), tuple(axes)).reshape(split).transpose(order).reshape(joined)
        return _initializer(op, f"{w.name}.flipped", array)
    last = [-1] * len(axes)
    flipped = op.Slice(w, last, [-(2**31)] * len(axes), axes, last) if set(shape[2:]) != {1} else w
    if group == 1:
        return op.Transpose(flipped, perm=[1, 0, *axes])
    return reshape(op, op.Transpose(reshape(op, flipped, split), perm=order), joined)


def _initializer(op: Builder, name: str, array: np.ndarray) -> ir.Value:
    """Return the initializer of this name and content. If the name has another content, return a shared constant."""
    existing = op.graph.initializers.get(name)
    if existing is None:
        return initializer(op.graph, name, array)
    same = existing.const_value is not None and np.array_equal(existing.const_value.numpy(), array)
    return existing if same else op.constant(array)


def _weight_grad_types(node: ir.Node) -> Types:
    x, dy = node.inputs
    group, kernel = node.attributes.get_int("group"), node.attributes.get_ints("kernel")
    assert x is not None and dy is not None
    return [(dy.dtype, ir.Shape([dims(dy)[1], int(dims(x)[1]) // group, *kernel]))]


@composite("ConvWeightGrad", _weight_grad_types)
def conv_weight_grad(op: Builder, node: ir.Node) -> ir.Value:
    """x [N, C, ...], dy [N, O, ...] -> dw [O, C/group, *kernel] of y = Conv(x, w).

    Tap by tap: dw[:, :, k] is the product of dy with the elements of x that tap k reads. One product takes several
    taps while their elements are no more than those of dy. All taps at once would copy the input as many times as the
    kernel has taps.
    """
    x, dy = node.inputs
    assert x is not None and dy is not None
    window, group = Window.read(node), node.attributes.get_int("group")
    outputs, inputs = int(dims(dy)[1]), int(dims(x)[1]) // group
    padded = pad_or_crop(op, x, window.begins, [max(0, over) for over in window.overhang], window.axes)
    taps = list(window.taps())
    if inputs == 1 and outputs == group:
        sums = [op.Unsqueeze(op.ChannelDot(dy, _read_by(op, padded, window, tap)), [1]) for tap in taps]
        return reshape(op, _joined(op, sums, 1), [outputs, 1, *window.kernel])
    positions = math.prod(window.outs)
    rows = reshape(op, dy, [dims(dy)[0], group, outputs // group, positions])
    merged = group == 1 and outputs * inputs > (outputs + inputs) * positions
    columns = _columns(op, rows, merged)
    together = max(1, outputs // (group * inputs))
    products = []
    for first in range(0, len(taps), together):
        read = [
            reshape(op, _read_by(op, padded, window, tap), [dims(x)[0], group, inputs, positions])
            for tap in taps[first : first + together]
        ]
        products.append(_product(op, _joined(op, read, 2), columns, merged))
    # Two steps, because engines are slow where more than one axis moves.
    by_tap = reshape(op, _joined(op, products, -2), [group * len(taps), inputs, outputs // group])
    by_tap = reshape(op, op.Transpose(by_tap, perm=[0, 2, 1]), [group, len(taps), outputs // group * inputs])
    return reshape(op, op.Transpose(by_tap, perm=[0, 2, 1]), [outputs, inputs, *window.kernel])


def _columns(op: Builder, rows: ir.Value, merged: bool) -> ir.Value:
    """dy [N, group, O, positions] with positions in front: [N * positions, O], or [N, group, 1, positions, O].

    The Reshape also keeps the engine from fusing Transpose and MatMul. In the engine's order new nodes come last, so
    the inputs of all weight gradients would stay in memory until the end of the run.
    """
    size, group, outputs, positions = dims(rows)
    turned = op.Transpose(rows, perm=[0, 1, 3, 2])
    return reshape(op, turned, [_both(size, positions), outputs] if merged else [size, group, 1, positions, outputs])


def _product(op: Builder, read: ir.Value, columns: ir.Value, merged: bool) -> ir.Value:
    """x [N, group, I, positions] with `columns`, summed over samples: [I, O], or [group, 1, I, O].

    `merged` is for layers whose weights are larger than their inputs and outputs. There a product per sample would be
    larger than both.
    """
    size, group, inputs, positions = dims(read)
    if merged:
        turned = op.Transpose(reshape(op, read, [size, inputs, positions]), perm=[1, 0, 2])
        return op.MatMul(reshape(op, turned, [inputs, _both(size, positions)]), columns)
    return op.ReduceSum(op.MatMul(reshape(op, read, [size, group, 1, inputs, positions]), columns), [0], keepdims=0)


def _both(size: int | str, positions: int | str) -> int | str:
    return size * positions if isinstance(size, int) and isinstance(positions, int) else f"{size}*{positions}"


def _read_by(op: Builder, padded: ir.Value, window: Window, tap: tuple[int, ...]) -> ir.Value:
    """Return the elements that `tap` reads at all output positions: [N, C, *outs]."""
    starts = [position * dilation for position, dilation in zip(tap, window.dilations, strict=True)]
    ends = [a + (o - 1) * s + 1 for a, o, s in zip(starts, window.outs, window.strides, strict=True)]
    if starts == [0] * len(starts) and ends == dims(padded)[2:] and set(window.strides) == {1}:
        return padded
    return op.Slice(padded, starts, ends, window.axes, list(window.strides))


def _joined(op: Builder, values: Sequence[ir.Value], axis: int) -> ir.Value:
    return values[0] if len(values) == 1 else op.Concat(*values, axis=axis)
