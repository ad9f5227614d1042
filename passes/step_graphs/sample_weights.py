"""The samples that a step learns from: entropies become one weight a position, by factors of 0 and 1, not by indexing.

Each graph reads `entropy.samples` [N, ...] of the forward and gives `sample.weights` [N, ...] to the backward.
A sample of the papers is a position of the head: with a dense head a pixel or token.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from ttac.passes.differentiate.losses import SAMPLES, WEIGHTS, total
from ttac.passes.graph.builder import Builder
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph, read

CHOSEN, SELECTED = "chosen", "selected"


def margin(context: Context) -> float:
    """The entropy in nats below which a sample counts: settings["margin"] times that of a uniform prediction."""
    return float(context.settings["margin"]) * math.log(context.classes)


def read_entropies(op: Builder, context: Context) -> ir.Value:
    """A new graph input for the entropy of each position, [N, ...]."""
    return read(op, SAMPLES, context.head.positions)


def below(op: Builder, entropies: ir.Value, threshold: float) -> ir.Value:
    """1 where the entropy is below the threshold, else (NaN included) 0."""
    return op.Cast(op.Less(entropies, threshold), to=int(ir.DataType.FLOAT))


def averaging(op: Builder, chosen: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Weights of the mean over the chosen positions, 1/n or 0, and their number n."""
    count = total(op, chosen)
    return op.Div(chosen, op.Max(count, 1.0)), count


def ones(op: Builder, entropies: ir.Value) -> ir.Value:
    """1 at each position."""
    return op.Add(op.Mul(entropies, 0.0), 1.0)


def reliable(context: Context) -> MethodGraph:
    """Weights 1/n on the n samples with H < E0, else 0 (Niu et al., arXiv:2302.12400, eq. 2); `selected` is n."""
    op = new_graph("reliable", context.opset)
    chosen = below(op, read_entropies(op, context), margin(context))
    weights, count = averaging(op, chosen)
    return finished(op, {WEIGHTS: weights, CHOSEN: chosen, SELECTED: count}, stats={SELECTED: "selected"})


def uniform(context: Context) -> MethodGraph:
    """Weights 1/n on all n samples: the plain mean."""
    op = new_graph("uniform", context.opset)
    each = ones(op, read_entropies(op, context))
    return finished(op, {WEIGHTS: op.Div(each, total(op, each))})
