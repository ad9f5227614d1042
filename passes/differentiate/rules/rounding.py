"""Gradients of rounding: straight through (Bengio et al., arXiv:1308.3432), also beyond the ends of the grid."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import GradientBuilder, gradient
from ttac.passes.operators.round_to_grid import ends


@gradient("Rounded")
def rounded(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x on a grid from low to high   ->   dx = dz; a grid from 0 on is also a ReLU: dx = dz where z > 0."""
    low, _ = ends(node)
    return op.Masked(dz, op.Positive(node.outputs[0])) if low == 0.0 else dz


@gradient("Counted")
def counted(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x/scale + zero, rounded   ->   dx = dz/scale."""
    scale = node.inputs[1]
    assert scale is not None and scale.const_value is not None
    return op.Mul(dz, 1.0 / float(scale.const_value.numpy()))
