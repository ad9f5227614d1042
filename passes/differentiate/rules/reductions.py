"""Gradients of reductions along axes."""

from __future__ import annotations

import math

import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import GradientBuilder, gradient
from ttac.passes.differentiate.rules.facts import integers, rank, refusal
from ttac.passes.graph.reshaping import expand, shape_of
from ttac.passes.graph.shapes import dims

TINY = 1e-30
"""Least divisor in the gradient of a norm, so that the gradient at zero is 0, not 0/0."""


@gradient("ReduceSum")
def reduce_sum(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = sum x   ->   dx = dy everywhere."""
    x = node.inputs[0]
    return expand(op, _kept(op, node, dy), dims(x), x)


@gradient("ReduceMean")
def reduce_mean(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = (sum x)/n   ->   dx = dy/n everywhere."""
    x = node.inputs[0]
    sizes = [dims(x)[axis] for axis in _axes(node)]
    known = math.prod(size for size in sizes if isinstance(size, int))
    each = op.Mul(_kept(op, node, dy), 1.0 / known)
    for name in (size for size in sizes if isinstance(size, str)):
        each = op.Div(each, op.Cast(shape_of(op, [name], x), to=int(dy.dtype or 0)))
    return expand(op, each, dims(x), x)


@gradient("ReduceMax")
def reduce_max(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = max x   ->   dx = dy where x is y, shared evenly among equals."""
    return _to_extremes(op, node, dy)


@gradient("ReduceMin")
def reduce_min(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = min x   ->   dx = dy where x is y, shared evenly among equals."""
    return _to_extremes(op, node, dy)


@gradient("ReduceSumSquare")
def reduce_sum_square(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = sum x^2   ->   dx = 2*dy*x."""
    _refuse_no_axes(node)
    return op.Mul(node.inputs[0], op.Mul(_kept(op, node, dy), 2.0))


@gradient("ReduceL1")
def reduce_absolute(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = sum |x|   ->   dx = dy*sign x."""
    _refuse_no_axes(node)
    return op.Mul(op.Sign(node.inputs[0]), _kept(op, node, dy))


@gradient("ReduceL2")
def reduce_euclidean(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = sqrt(sum x^2)   ->   dx = dy*x/y, and 0 where y is 0."""
    _refuse_no_axes(node)
    return op.Mul(node.inputs[0], _kept(op, node, op.Div(dy, op.Max(node.outputs[0], TINY))))


@gradient("ReduceLogSumExp")
def reduce_log_sum_exp(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = log sum e^x   ->   dx = dy*e^(x - y)."""
    _refuse_no_axes(node)
    return op.Mul(op.Exp(op.Sub(node.inputs[0], _kept(op, node, node.outputs[0]))), _kept(op, node, dy))


@gradient("CumSum")
def cumulative_sum(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = sums of x up to each position   ->   dx = sums of dy from each position on."""
    backwards = 1 - node.attributes.get_int("reverse", 0)
    return op.CumSum(dy, node.inputs[1], exclusive=node.attributes.get_int("exclusive", 0), reverse=backwards)


def _axes(node: ir.Node) -> list[int]:
    """Return the reduced axes as sorted indices from the front."""
    count = rank(node.inputs[0])
    axes = integers(node, 1)
    if axes:
        return sorted(axis % count for axis in axes)
    return [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(count))


def _kept(op: GradientBuilder, node: ir.Node, y: ir.Value) -> ir.Value:
    """Return `y`, a tensor in the shape of the node's output, with the reduced axes as axes of size 1."""
    axes = _axes(node)
    return op.Unsqueeze(y, axes) if axes and not node.attributes.get_int("keepdims", 1) else y


def _to_extremes(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> ir.Value:
    x, axes = node.inputs[0], _axes(node)
    if not axes:
        return dy
    is_extreme = op.Cast(op.Equal(x, _kept(op, node, node.outputs[0])), to=int(dy.dtype or 0))
    return op.Mul(is_extreme, op.Div(_kept(op, node, dy), op.ReduceSum(is_extreme, axes, keepdims=1)))


def _refuse_no_axes(node: ir.Node) -> None:
    if not _axes(node) and rank(node.inputs[0]):
        raise refusal(node, "engines disagree on its output without axes and with `noop_with_empty_axes`")
