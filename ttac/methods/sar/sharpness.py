"""Sharpness-aware minimisation in four graphs: climb to the worst point nearby, descend with the gradient from there.

Foret et al. (arXiv:2010.01412) in the form of SAR (arXiv:2302.12400, eq. 3 to 5): one length over all trained tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.losses import WEIGHTS, total
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.context import (
    Context,
    MethodGraph,
    finished,
    new_graph,
    read,
    read_gradients,
    read_parameters,
)
from ttac.passes.step_graphs.guard import DRIFT, bounded
from ttac.passes.step_graphs.optimizers import FlatParameters, ensembled, flatten, sgd, unflatten
from ttac.passes.step_graphs.sample_weights import CHOSEN, averaging, below, margin, read_entropies
from ttac.settings import is_guarded

BEFORE, CONFIRMED, COLLAPSED = "parameters.before", "confirmed", "collapsed"
PAPER_CLASSES = 1000
"""Number of classes for which the paper chose its reset threshold; the threshold scales with ln(classes)."""
PERTURBED_ENTROPY, AVERAGE_ENTROPY = "entropy.perturbed", "entropy.average"
TINY = 1e-12
"""Added to the length of the gradient against a division by zero, as in the official code."""


def ascend(context: Context) -> MethodGraph:
    """p <- p + rho*g/|g|, and p from before as the vector `parameters.before`."""
    op = new_graph("ascend", context.opset)
    values, gradients = read_parameters(op, context), read_gradients(op, context)
    with op.at("ascend"):
        before, gradient = op.Identity(flatten(op, values)), flatten(op, gradients)
        length = op.Sqrt(op.ReduceSumSquare(gradient, keepdims=0))
        step = op.Div(float(context.settings["rho"]), op.Add(length, TINY))
        moved = unflatten(op, op.Add(before, op.Mul(gradient, step)), context.parameters)
    return finished(op, {BEFORE: before}, _moved(context, values, moved))


def confirm(context: Context) -> MethodGraph:
    """Weights 1/n on the n samples that were chosen and have H < E0 again, perturbed; and their mean entropy."""
    op = new_graph("confirm", context.opset)
    entropies, before = read_entropies(op, context), read(op, CHOSEN, context.head.positions)
    weights, count = averaging(op, op.Mul(below(op, entropies, margin(context)), before))
    loss = total(op, op.Mul(weights, entropies))
    return finished(op, {WEIGHTS: weights, CONFIRMED: count, PERTURBED_ENTROPY: loss}, stats={CONFIRMED: "confirmed"})


def descend(context: Context) -> MethodGraph:
    """SGD from `parameters.before` with the gradient at the perturbed point, and the average of the loss there.

    `entropy.average` is 0 before the first step: a true average that small is reset at once.  `collapsed` is 1 if the
    average fell below `reset_threshold` * ln(classes)/ln(1000), else 0.
    """
    op = new_graph("descend", context.opset)
    gradients = read_gradients(op, context)
    before = _read_before(op, context)
    loss = read(op, PERTURBED_ENTROPY, ())
    zero = np.zeros((), np.float32)
    average = state_input(op.graph, AVERAGE_ENTROPY, zero)
    with op.at("descend"):
        of = FlatParameters(before, flatten(op, gradients))
        following, momentum = sgd(op, of, {**context.settings, "nesterov": False})
        following = ensembled(op, following, context.parameters, context.settings)
        following = bounded(op, following, context.parameters, context.settings)
        moved = unflatten(op, following, context.parameters)
        blended = op.Add(op.Mul(average, 0.9), op.Mul(loss, 0.1))
        ema = op.Where(op.Greater(average, 0.0), blended, loss)
        low = op.Cast(op.Less(ema, reset_threshold(context)), to=int(ir.DataType.FLOAT))
    counter = StateTensor(name=AVERAGE_ENTROPY, role="counter", initial=zero, value=average, next=ema)
    state = [*_moved(context, [p.value for p in context.parameters], moved), *momentum, counter]
    drift = {DRIFT: "drift"} if is_guarded(context.settings) else {}
    return finished(op, {COLLAPSED: low}, state, stats={COLLAPSED: "recovered", **drift})


def reset_threshold(context: Context) -> float:
    """The average entropy in nats below which a model counts as collapsed, the paper's at 1,000 classes.

    The entropy of an ordinary confident model over two classes is below the paper's 0.2 nats at every step.
    """
    return float(context.settings["reset_threshold"]) * math.log(context.classes) / math.log(PAPER_CLASSES)


def undo_ascent(context: Context) -> MethodGraph:
    """p <- `parameters.before`, exactly: the second forward confirmed no sample."""
    op = new_graph("undo_ascent", context.opset)
    before = _read_before(op, context)
    with op.at("undo_ascent"):
        moved = unflatten(op, op.Identity(before), context.parameters)
    return finished(op, {}, _moved(context, [p.value for p in context.parameters], moved))


def _read_before(op: Builder, context: Context) -> ir.Value:
    return read(op, BEFORE, [sum(p.initial.size for p in context.parameters)])


def _moved(context: Context, values: Sequence[ir.Value], moved: Sequence[ir.Value]) -> list[StateTensor]:
    return [
        replace(p, value=value, next=after) for p, value, after in zip(context.parameters, values, moved, strict=True)
    ]
