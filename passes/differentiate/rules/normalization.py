"""Gradients of the norms that normalise each sample by its own statistics.

They share one core, for xhat = (x - mean)*r over some axes and the gradient g of xhat:

    dx = core(g) = r*(g - mean of g - xhat * mean of g*xhat)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import GradientBuilder, gradient
from ttac.passes.differentiate.rules.facts import axis_of, rank
from ttac.passes.graph.reshaping import expand, reshape, reshape_like
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.windows import spatial

Gradients = tuple[ir.Value | None, ...]


@gradient("LayerNormalization", broadcasts=True)
def layer_normalization(
    op: GradientBuilder,
    node: ir.Node,
    dy: ir.Value | None,
    dmean: ir.Value | None = None,
    dr: ir.Value | None = None,
) -> Gradients:
    """y = xhat*scale + bias over the axes from `axis` on; its further outputs are mean and r

    ->   dx = core(dy*scale) + dmean/n - dr*r^2*xhat/n,  dscale = dy*xhat,  dbias = dy.
    """
    x, scale = node.inputs[:2]
    assert x is not None
    axes = list(range(axis_of(node, -1), rank(x)))
    xhat, r = _layer_standardized(op, x, axes, node.attributes.get_float("epsilon", 1e-5))
    inverse_count, terms, dscale = 1.0 / math.prod(int(dims(x)[axis]) for axis in axes), [], None
    if dy is not None:
        dscale = op.Mul(dy, xhat)
        terms.append(_from_product(op, dy, dscale, scale, xhat, r, axes))
    if dmean is not None:
        terms.append(expand(op, op.Mul(dmean, inverse_count), dims(x), x))
    if dr is not None:
        terms.append(op.Mul(xhat, op.Mul(op.Mul(dr, op.Mul(r, r)), -inverse_count)))
    dx = terms[0] if len(terms) == 1 else op.Sum(*terms)
    return (dx, dscale, dy)[: len(node.inputs)]


def _from_product(
    op: GradientBuilder,
    dy: ir.Value,
    product: ir.Value,
    scale: ir.Value | None,
    xhat: ir.Value,
    r: ir.Value,
    axes: Sequence[int],
) -> ir.Value:
    """Return core(dy*scale) from the product dy*xhat: over one axis, both means are matrix products with the scale."""
    if len(axes) > 1 or dims(scale) != [dims(xhat)[-1]]:
        return _core(op, op.Mul(dy, scale), xhat, r, axes)
    width = int(dims(xhat)[-1])
    column = op.Unsqueeze(op.Mul(scale, 1.0 / width), [1])
    along = op.Mul(xhat, op.MatMul(product, column))
    return op.Mul(op.Sub(op.Sub(op.Mul(dy, scale), op.MatMul(dy, column)), along), r)


@gradient("InstanceNormalization")
def instance_normalization(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = xhat*scale + bias per sample and channel   ->   dx = core(dy*scale), and sums of dy*xhat and of dy.

    With scale one and bias zero, as in a group norm of separate operators, xhat is y, and y is the only residual.
    """
    x, scale, bias = node.inputs
    axes = list(range(2, rank(x)))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    xhat, r = _standardized(op, x, axes, epsilon)
    if _holds(scale, 1.0) and _holds(bias, 0.0):
        xhat = node.outputs[0]
    dscale = op.ChannelDot(dy, xhat) if op.wants(1) else None
    dbias = op.ChannelSum(dy) if op.wants(2) else None
    dx = _core(op, op.ChannelAffine(dy, scale), xhat, r, axes, epsilon) if op.wants(0) else None
    return dx, dscale, dbias


def _holds(value: ir.Value | None, number: float) -> bool:
    """Whether every element of `value` is this constant number."""
    return value is not None and value.const_value is not None and bool((value.const_value.numpy() == number).all())


@gradient("GroupNormalization")
def group_normalization(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> Gradients:
    """y = xhat*scale + bias, xhat per sample and group of channels   ->   as InstanceNormalization.

    Until opset 20 scale and bias are one number per group, from opset 21 on one per channel.
    """
    x, scale, _ = node.inputs
    groups = node.attributes.get_int("num_groups")
    batch, channels = dims(x)[0], int(dims(x)[1])
    per_group = [batch, groups, channels // groups * math.prod(spatial(x))]
    shape = per_group if op.opset < 21 else dims(x)
    assert x is not None
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    xhat, r = _standardized(op, reshape(op, x, per_group), [2], epsilon)
    dy = reshape(op, dy, shape)
    dscale = op.ChannelDot(dy, reshape(op, xhat, shape)) if op.wants(1) else None
    dbias = op.ChannelSum(dy) if op.wants(2) else None
    dx = None
    if op.wants(0):
        g = reshape(op, op.ChannelAffine(dy, scale), per_group)
        dx = reshape_like(op, _core(op, g, xhat, r, [2], epsilon), x)
    return dx, dscale, dbias


def _layer_standardized(op: GradientBuilder, x: ir.Value, axes: Sequence[int], eps: float) -> tuple[ir.Value, ir.Value]:
    """Return the result of `_standardized` over the last axes, by one LayerNormalization, whose r is float32 only."""
    if x.dtype != ir.DataType.FLOAT:
        return _standardized(op, x, axes, eps)
    sizes = [int(dims(x)[axis]) for axis in axes]
    ones, zeros = np.ones(sizes, np.float32), np.zeros(sizes, np.float32)
    xhat, _, r = op.LayerNormalization(x, ones, zeros, axis=-len(sizes), epsilon=eps, outputs=3)
    return xhat, r


def _standardized(
    op: GradientBuilder, x: ir.Value | None, axes: Sequence[int], eps: float
) -> tuple[ir.Value, ir.Value]:
    """Return xhat = (x - mean)*r and r = 1/sqrt(variance + eps), over `axes`, which have size 1 in r."""
    centred = op.Sub(x, op.ReduceMean(x, list(axes), keepdims=1))
    variance = op.ReduceMean(op.Mul(centred, centred), list(axes), keepdims=1)
    r = op.Reciprocal(op.Sqrt(op.Add(variance, eps)))
    return op.Mul(centred, r), r


def _core(
    op: GradientBuilder, g: ir.Value, xhat: ir.Value, r: ir.Value, axes: Sequence[int], epsilon: float | None = None
) -> ir.Value:
    """r*(g - mean of g - xhat * mean of g*xhat); with `epsilon`, the axes are all axes after the second."""
    if epsilon is None:
        along = op.Mul(xhat, op.ReduceMean(op.Mul(g, xhat), list(axes), keepdims=1))
    else:
        along = op.Along(g, xhat, op.Sub(1.0, op.Mul(op.Mul(r, r), epsilon)))
    return op.Mul(op.Sub(op.Sub(g, op.ReduceMean(g, list(axes), keepdims=1)), along), r)
