"""ttac operators for the entropy of predictions, straight from scores: finite for any scores, and little to keep.

The gradient of each has a closed form in the scores, which the forward hands out anyway, so no tensor of their size is
kept for it; spelled out in primitives it would be the logarithms of all probabilities.  On a segmentation net with 150
classes, whose scores are 37 MiB, the peak of a step is 162 MiB instead of 218; with 19 classes, 95 instead of 124.
"""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import Types, composite, like
from ttac.passes.graph.shapes import dims


def _reduced(node: ir.Node) -> Types:
    """One value a position, and two more with the reduced axis kept as 1."""
    z = node.inputs[0]
    assert z is not None
    sizes, axis = dims(z), node.attributes.get_int("axis")
    kept = ir.Shape([1 if i == axis else size for i, size in enumerate(sizes)])
    return [(z.dtype, ir.Shape([size for i, size in enumerate(sizes) if i != axis])), (z.dtype, kept), (z.dtype, kept)]


@composite("Entropy", _reduced, outputs=3)
def entropy(op: Builder, node: ir.Node) -> tuple[ir.Value, ...]:
    """z, `axis` -> H = -sum p log p of p = softmax z along the axis, m = max z and S = sum e^(z - m), axis kept.

    H = log S - sum (z - m) e^(z - m) / S.  The engine's Softmax and LogSoftmax move another axis than the last one to
    the end and back: 4 to 12 times as slow as these reductions, on maps.
    """
    (z,) = node.inputs
    axis = node.attributes.get_int("axis")
    peak = op.ReduceMax(z, [axis], keepdims=1)
    below = op.Sub(z, peak)
    powers = op.Exp(below)
    total = op.ReduceSum(powers, [axis], keepdims=1)
    mean = op.Div(op.ReduceSum(op.Mul(powers, below), [axis], keepdims=1), total)
    return op.Squeeze(op.Sub(op.Log(total), mean), [axis]), peak, total


@composite("EntropySlope", like(1))
def entropy_grad(op: Builder, node: ir.Node) -> ir.Value:
    """dH, z, H, m, S of `Entropy`, `axis` -> dz = -dH*p*(log p + H)."""
    slope, z, found, peak, total = node.inputs
    axis = node.attributes.get_int("axis")
    below = op.Sub(z, peak)
    shift = op.Sub(op.Unsqueeze(found, [axis]), op.Log(total))
    share = op.Div(op.Neg(op.Unsqueeze(slope, [axis])), total)
    return op.Mul(op.Mul(op.Exp(below), op.Add(below, shift)), share)


@composite("BinaryEntropy", like(0))
def binary_entropy(op: Builder, node: ir.Node) -> ir.Value:
    """x -> H = -s log s - (1-s) log(1-s) of s = sigmoid x, as log(1 + t) + |x|*t/(1 + t) with t = e^-|x|."""
    away = op.Abs(node.inputs[0])
    t = op.Exp(op.Neg(away))
    return op.Add(op.Softplus(op.Neg(away)), op.Div(op.Mul(away, t), op.Add(t, 1.0)))


@composite("BinaryEntropySlope", like(1))
def binary_entropy_grad(op: Builder, node: ir.Node) -> ir.Value:
    """dH, x -> dx = -dH*x*s*(1 - s), with s*(1 - s) = t/(1 + t)^2 and t = e^-|x|."""
    slope, x = node.inputs
    t = op.Exp(op.Neg(op.Abs(x)))
    more = op.Add(t, 1.0)
    return op.Neg(op.Mul(slope, op.Div(op.Mul(x, t), op.Mul(more, more))))
