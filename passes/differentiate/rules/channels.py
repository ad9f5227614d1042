"""Gradients of the per-channel operators of norms; tensors are [N, C, ...]."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import GradientBuilder, gradient
from ttac.passes.differentiate.rules.facts import rank, refusal
from ttac.passes.graph.reshaping import expand
from ttac.passes.graph.shapes import dims


@gradient("BatchNormalization")
def batch_normalization(op: GradientBuilder, node: ir.Node, dy: ir.Value, *unused: None) -> tuple[ir.Value | None, ...]:
    """y = scale*(x - mean)*r + bias with r = 1/sqrt(var + eps)   ->   dx = dy*scale*r, and for the vectors [C]

    dbias = sum dy,  dscale = sum dy*xhat,  dmean = -scale*r*dbias,  dvar = -scale*r^2*dscale/2.

    The sums come first, so that dy*x is free before dx exists.
    """
    if node.attributes.get_int("training_mode", 0):
        raise refusal(node, "its `training_mode` is on; export the model in eval mode")
    x, scale, _, mean, var = node.inputs
    eps = node.attributes.get_float("epsilon", 1e-5)
    r = op.Reciprocal(op.Sqrt(op.Add(var, eps)))
    derivative = op.Mul(scale, r)
    if not {1, 2, 3, 4} & op.wanted:
        return (op.ChannelAffine(dy, derivative),)
    dbias = op.ChannelSum(dy)
    dscale = op.Mul(op.Sub(op.ChannelDot(dy, x), op.Mul(mean, dbias)), r)
    dmean = op.Neg(op.Mul(derivative, dbias))
    dvar = op.Mul(op.Mul(op.Mul(derivative, r), dscale), -0.5)
    dx = op.ChannelAffine(dy, derivative) if op.wants(0) else None
    return dx, dscale, dbias, dmean, dvar


@gradient("Moments")
def moments(op: GradientBuilder, node: ir.Node, dmean: ir.Value | None, dvar: ir.Value | None) -> ir.Value | None:
    """mean, var over the n elements of each channel   ->   dx = dmean/n + dvar*2*(x - mean)/n."""
    (x,) = node.inputs
    mean = node.outputs[0]
    count = op.ChannelCount(x)
    shift = op.Div(dmean, count) if dmean is not None else None
    if dvar is None:
        if shift is None:
            return None
        per_channel = op.Unsqueeze(shift, [0, *range(2, rank(x))])
        return expand(op, per_channel, dims(x), x)
    factor = op.Div(op.Mul(dvar, 2.0), count)
    offset = op.Neg(op.Mul(factor, mean))
    return op.ChannelAffine(x, factor, offset if shift is None else op.Add(offset, shift))
