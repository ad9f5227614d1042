"""Gradients of the pools; tensors are [N, C, ...]."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import GradientBuilder, gradient
from ttac.passes.differentiate.rules.facts import refusal
from ttac.passes.graph.reshaping import expand, reshape, reshape_like, zeros
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.windows import Window, spatial, window_of


@gradient("MaxPool")
def max_pool(op: GradientBuilder, node: ir.Node, dy: ir.Value, *_: None) -> ir.Value:
    """y = the largest of each window   ->   dx = dy at the place of the maximum, the first among equals."""
    facts = _window(node).attributes()
    return op.MaxPoolScatter(dy, op.MaxPoolTaps(node.inputs[0], node.outputs[0], **facts), **facts)


@gradient("AveragePool")
def average_pool(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = the mean of each window   ->   dx = dy/count, summed over the windows that read x."""
    window = _window(node)
    padded = node.attributes.get_int("count_include_pad", 0)
    if padded and node.attributes.get_int("ceil_mode", 0) and _overruns(node, window):
        raise refusal(node, "with `ceil_mode` and `count_include_pad` engines disagree on the count of the last window")
    return op.AveragePoolInputGrad(dy, **window.attributes(), padded=padded)


@gradient("GlobalAveragePool")
def global_average_pool(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = mean of x over space   ->   dx = dy/count everywhere."""
    x = node.inputs[0]
    return expand(op, op.Mul(dy, 1.0 / math.prod(spatial(x))), dims(x), x)


@gradient("GlobalMaxPool")
def global_max_pool(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = maximum of x over space   ->   dx = dy at the place of the maximum, the first among equals."""
    x = node.inputs[0]
    assert x is not None
    flat = [*dims(x)[:2], math.prod(spatial(x))]
    index = op.ArgMax(reshape(op, x, flat), axis=2)
    dx = op.ScatterElements(zeros(op, flat, dy.dtype, dy), index, reshape(op, dy, [*flat[:2], 1]), axis=2)
    return reshape_like(op, dx, x)


def _window(node: ir.Node) -> Window:
    return window_of(node, node.attributes.get_ints("kernel_shape"), spatial(node.inputs[0]), spatial(node.outputs[0]))


def _overruns(node: ir.Node, window: Window) -> bool:
    """Whether a window reads beyond the padding at the end."""
    pads = node.attributes.get_ints("pads") or [0] * (2 * len(window.kernel))
    return bool(np.any(np.array(window.overhang) > np.array(pads[len(window.kernel) :])))
