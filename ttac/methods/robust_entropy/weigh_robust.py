"""The weights that turn the entropies' gradients into those of a robust loss."""

from __future__ import annotations

import math

import onnx_ir as ir

from ttac.passes.differentiate.losses import WEIGHTS, total
from ttac.passes.graph.builder import Builder
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph
from ttac.passes.step_graphs.sample_weights import ones, read_entropies


def weigh_robust(context: Context) -> MethodGraph:
    """Weights rho'(H)/n on all n samples, so that the gradient is that of the mean of rho(H)."""
    op = new_graph("weigh_robust", context.opset)
    entropies = read_entropies(op, context)
    shape, scale = (
        float(context.settings["robust_shape"]),
        float(context.settings["robust_scale"]) * math.log(context.classes),
    )
    slope = derivative(op, entropies, shape, scale)
    return finished(op, {WEIGHTS: op.Div(slope, total(op, ones(op, entropies)))})


def derivative(op: Builder, x: ir.Value, shape: float, scale: float) -> ir.Value:
    """rho'(x; a, c) = x/c^2 * ((x/c)^2/|a - 2| + 1)^(a/2 - 1), and x/c^2 for a = 2 (Barron, arXiv:1701.03077, eq. 10).

    a is the `shape` and c the `scale`.
    """
    steep = op.Mul(x, 1 / scale**2)
    if shape == 2.0:
        return steep
    far = op.Add(op.Mul(op.Mul(x, x), 1 / (scale**2 * abs(shape - 2))), 1.0)
    return op.Mul(steep, op.Pow(far, shape / 2 - 1))
