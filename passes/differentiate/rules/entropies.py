"""Gradients of the entropy of predictions: closed forms in the scores, computed when the backward runs."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import GradientBuilder, gradient


@gradient("Entropy")
def entropy(op: GradientBuilder, node: ir.Node, dh: ir.Value, *_: None) -> ir.Value:
    """H = -sum p log p of p = softmax z along the axis   ->   dz = -dH*p*(log p + H)."""
    h, peak, total = node.outputs
    return op.EntropyGradient(dh, node.inputs[0], h, peak, total, axis=node.attributes.get_int("axis"))


@gradient("BinaryEntropy")
def binary_entropy(op: GradientBuilder, node: ir.Node, dh: ir.Value) -> ir.Value:
    """H = -s log s - (1-s) log(1-s) of s = sigmoid x   ->   dx = -dH*x*s*(1 - s)."""
    return op.BinaryEntropyGradient(dh, node.inputs[0])
