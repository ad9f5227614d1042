"""The samples that a step of EATA learns from, and its update (Niu et al., arXiv:2204.02610)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.losses import WEIGHTS, total
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs import optimizers
from ttac.passes.step_graphs.class_options import balanced
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph, read
from ttac.passes.step_graphs.probabilities import over_positions, probabilities
from ttac.passes.step_graphs.sample_weights import SELECTED, below, margin, read_entropies

FLOAT = int(ir.DataType.FLOAT)
AVERAGE = "probabilities.average"
TINY = 1e-8
"""Least product of lengths in a cosine, as in torch.nn.functional.cosine_similarity: the empty average has length 0."""


def weigh_reliable(context: Context) -> MethodGraph:
    """Weights e^(E0 - H)/n on the n samples that are reliable and not redundant (eq. 2 to 6).

    Redundant: |cos| of the probabilities to their moving average m is `redundancy` or more.  m is zeros while empty,
    which is similar to nothing; it follows the mean probabilities of the selected samples.
    """
    op = new_graph("weigh_reliable", context.opset)
    entropies = read_entropies(op, context)
    threshold = margin(context)
    scores = read(op, context.logits, context.head.shape)
    p, axis = probabilities(op, scores, context.head)
    initial = np.zeros(_classes(p, axis), np.float32)
    average = state_input(op.graph, AVERAGE, initial)
    fresh = op.Cast(op.Less(_similarity(op, p, axis, average), float(context.settings["redundancy"])), to=FLOAT)
    chosen = op.Mul(below(op, entropies, threshold), fresh)
    count = total(op, chosen)
    some = op.Max(count, 1.0)
    strength = op.Exp(op.Sub(threshold, op.Min(entropies, threshold)))
    counters: list[StateTensor] = []
    if context.settings["balance"]:
        factors, classes = balanced(op, context, scores)
        strength, counters = op.Mul(strength, factors), [classes]
    weights = op.Div(op.Mul(chosen, strength), some)
    mean = op.Div(over_positions(op.ReduceSum, op.Mul(p, op.Unsqueeze(chosen, [axis])), axis), some)
    blended = op.Add(op.Mul(average, 0.9), op.Mul(mean, 0.1))
    started = op.Greater(op.ReduceSum(average, keepdims=0), 0.0)
    following = op.Where(op.Greater(count, 0.0), op.Where(started, blended, mean), average)
    state = StateTensor(name=AVERAGE, role="optimizer", initial=initial, value=average, next=following)
    return finished(op, {WEIGHTS: weights, SELECTED: count}, [state, *counters], {SELECTED: "selected"})


def update(context: Context) -> MethodGraph:
    """One step of the optimizer, held to the source where there is Fisher information."""
    anchor = optimizers.Anchor(context.constants, float(context.settings["fisher"])) if context.constants else None
    return optimizers.update(context, anchor=anchor)


def _similarity(op: Builder, p: ir.Value, axis: int, average: ir.Value) -> ir.Value:
    """|cos| of the probabilities at each position to `average`, [N, ...]."""
    beside = op.Reshape(average, [-1 if i == axis else 1 for i in range(len(dims(p)))])
    length = op.Mul(op.ReduceL2(p, [axis], keepdims=0), op.ReduceL2(average, keepdims=0))
    return op.Abs(op.Div(op.ReduceSum(op.Mul(p, beside), [axis], keepdims=0), op.Max(length, TINY)))


def _classes(p: ir.Value, axis: int) -> int:
    size = dims(p)[axis]
    assert isinstance(size, int)
    return size
