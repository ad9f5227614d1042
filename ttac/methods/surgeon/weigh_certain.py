"""The samples that a step of SURGEON learns from."""

from __future__ import annotations

import math

from ttac.passes.differentiate.losses import WEIGHTS, total
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph
from ttac.passes.step_graphs.sample_weights import SELECTED, below, margin, read_entropies


def weigh_certain(context: Context) -> MethodGraph:
    """Weights e^(E0 - H)/n on the n samples with H < E0 with settings["css"]; weights 1/n on all n samples without."""
    op = new_graph("weigh_certain", context.opset)
    entropies = read_entropies(op, context)
    threshold = margin(context)
    chosen = below(op, entropies, threshold if context.settings["css"] else math.inf)
    count = total(op, chosen)
    strength = op.Exp(op.Sub(threshold, op.Min(entropies, threshold))) if context.settings["css"] else None
    weighted = chosen if strength is None else op.Mul(chosen, strength)
    weights = op.Div(weighted, op.Max(count, 1.0))
    return finished(op, {WEIGHTS: weights, SELECTED: count}, stats={SELECTED: "selected"})
