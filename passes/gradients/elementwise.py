"""Gradients of operators that act element by element."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.autodiff import GradientBuilder, gradient


@gradient("Mul", broadcasts=True)
def mul(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> tuple[ir.Value | None, ...]:
    """z = a*b   ->   da = dz*b,  db = dz*a."""
    a, b = node.inputs
    return op.Mul(dz, b) if op.wants(0) else None, op.Mul(dz, a) if op.wants(1) else None


@gradient("Relu")
def relu(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = max(x, 0)   ->   dx = dz where z > 0: one bit per element is all it keeps."""
    return op.Masked(dz, op.Positive(node.outputs[0]))
