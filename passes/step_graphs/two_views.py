"""One backward graph that runs once for each view of a batch: gradients that are kept, added and applied.

The activations of two views never exist at the same time.  Between the runs exists one gradient of each parameter.
"""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.step_graphs import optimizers
from ttac.passes.step_graphs.context import Context, MethodGraph, read_gradients

KEPT, SUM = "kept", "sum"


def kept_gradients(op: Builder, context: Context) -> dict[str, ir.Value]:
    """The gradients of the first view as outputs `<gradient>.kept`."""
    return {f"{gradient.name}.{KEPT}": op.Identity(gradient) for gradient in read_gradients(op, context)}


def summed_gradients(op: Builder, context: Context) -> dict[str, ir.Value]:
    """The gradients of both views as outputs `<gradient>.sum`."""
    gradients = read_gradients(op, context)
    kept = read_gradients(op, context, [f"{name}.{KEPT}" for name in context.gradients])
    return {f"{a.name}.{SUM}": op.Add(a, b) for a, b in zip(gradients, kept, strict=True)}


def update(context: Context) -> MethodGraph:
    """One step of the optimizer with the gradients of both views."""
    return optimizers.update(context, [f"{name}.{SUM}" for name in context.gradients])
