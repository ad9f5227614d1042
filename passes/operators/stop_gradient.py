"""The operator that passes a value on and stops its gradient."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import composite, like

DETACHED = "Detached"


@composite(DETACHED, like(0))
def detached(op: Builder, node: ir.Node) -> ir.Value:
    """x -> x; a derivative takes the result as a constant (`detach` in PyTorch)."""
    return op.Identity(node.inputs[0])
