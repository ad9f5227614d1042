"""Which samples a step learns from: entropies become one weight a position, filters as 0/1, never indexing.

Each graph reads `entropy.samples` [N, ...] of the forward, hands `sample.weights` [N, ...] to the backward, and counts.
What the papers call a sample is a position of the head: with a dense one a pixel or token.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.losses import SAMPLES, WEIGHTS, total
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.context import Context, MethodGraph, finished

ROOM = "selection"
CHOSEN, SELECTED, CONFIRMED, AGAIN = "chosen", "selected", "confirmed", "loss.again"
# As torch.nn.functional.cosine_similarity: no division by zero for the empty average.
TINY = 1e-8


def margin(context: Context) -> float:
    """The entropy below which a sample counts, in nats: a share of that of a uniform guess."""
    return float(context.settings["margin"]) * math.log(context.classes)


def reliable(context: Context) -> MethodGraph:
    """Weights 1/n on the n samples with H < E0, else 0 (SAR, arXiv:2302.12400, eq. 2); `selected` is n."""
    op, (entropies,) = _builder(context, "reliable", SAMPLES)
    chosen = _chosen(op, entropies, margin(context))
    count = total(op, chosen)
    weights = op.Div(chosen, op.Max(count, 1.0))
    return finished(op, {WEIGHTS: weights, CHOSEN: chosen, SELECTED: count}, stats={SELECTED: "selected"})


def confirm(context: Context) -> MethodGraph:
    """Weights 1/n on the n samples that were chosen and have H < E0 again, perturbed; and their mean entropy."""
    op, (entropies, before) = _builder(context, "confirm", SAMPLES, CHOSEN)
    chosen = op.Mul(_chosen(op, entropies, margin(context)), before)
    count = total(op, chosen)
    weights = op.Div(chosen, op.Max(count, 1.0))
    loss = total(op, op.Mul(weights, entropies))
    outputs = {WEIGHTS: weights, CONFIRMED: count, AGAIN: loss}
    return finished(op, outputs, stats={CONFIRMED: "confirmed"})


def uniform(context: Context) -> MethodGraph:
    """Weights 1/n on all n samples: the plain mean."""
    op, (entropies,) = _builder(context, "uniform", SAMPLES)
    ones = op.Add(op.Mul(entropies, 0.0), 1.0)
    return finished(op, {WEIGHTS: op.Div(ones, total(op, ones))})


def certain(context: Context) -> MethodGraph:
    """Weights e^(E0 - H)/n on the n samples with H < E0 with settings["css"] (METHODS 6); 1/n on all n without."""
    op, (entropies,) = _builder(context, "certain", SAMPLES)
    threshold = margin(context)
    chosen = _chosen(op, entropies, threshold if context.settings["css"] else math.inf)
    count = total(op, chosen)
    strength = op.Exp(op.Sub(threshold, op.Min(entropies, threshold))) if context.settings["css"] else None
    weighed = chosen if strength is None else op.Mul(chosen, strength)
    weights = op.Div(weighed, op.Max(count, 1.0))
    return finished(op, {WEIGHTS: weights, SELECTED: count}, stats={SELECTED: "selected"})


def select(context: Context) -> MethodGraph:
    """Weights e^(E0 - H)/n on the n samples that are reliable and not redundant (EATA, arXiv:2204.02610, eq. 2 to 6).

    Redundant: |cos| of the probabilities to their moving average m is `redundancy` or more.  m is zeros while empty,
    which is similar to nothing; it follows the mean probabilities of the selected samples.
    """
    op, (entropies,) = _builder(context, "select", SAMPLES)
    threshold = margin(context)
    p, axis = _probabilities(op, context)
    initial = np.zeros(_along(p, axis), np.float32)
    average = state_input(op.graph, "eata.mean", initial)
    beside = op.Reshape(average, [-1 if i == axis else 1 for i in range(len(dims(p)))])
    length = op.Mul(op.ReduceL2(p, [axis], keepdims=0), op.ReduceL2(average, keepdims=0))
    cosine = op.Div(op.ReduceSum(op.Mul(p, beside), [axis], keepdims=0), op.Max(length, TINY))
    fresh = op.Cast(op.Less(op.Abs(cosine), float(context.settings["redundancy"])), to=int(ir.DataType.FLOAT))
    chosen = op.Mul(_chosen(op, entropies, threshold), fresh)
    count = total(op, chosen)
    some = op.Max(count, 1.0)
    weights = op.Div(op.Mul(chosen, op.Exp(op.Sub(threshold, op.Min(entropies, threshold)))), some)
    mean = op.Div(_summed(op, op.Mul(p, op.Unsqueeze(chosen, [axis])), axis), some)
    blended = op.Add(op.Mul(average, 0.9), op.Mul(mean, 0.1))
    started = op.Greater(op.ReduceSum(average, keepdims=0), 0.0)
    following = op.Where(op.Greater(count, 0.0), op.Where(started, blended, mean), average)
    state = StateTensor(name="eata.mean", role="optimizer", initial=initial, value=average, next=following)
    return finished(op, {WEIGHTS: weights, SELECTED: count}, [state], {SELECTED: "selected"})


def _probabilities(op: Builder, context: Context) -> tuple[ir.Value, int]:
    """The probabilities at each position and their axis: of the classes, or 1 - s and s of every answer."""
    head = context.head
    scores = ir.val(context.logits, dtype=ir.DataType.FLOAT, shape=ir.Shape(list(head.shape)))
    op.graph.inputs.append(scores)
    axis = len(head.shape) if head.axis is None else head.axis
    if head.binary:
        each = scores if head.axis is not None else op.Unsqueeze(scores, [axis])
        return op.Concat(op.Sigmoid(op.Neg(each)), op.Sigmoid(each), axis=axis), axis
    powers = op.Exp(op.Sub(scores, op.ReduceMax(scores, [axis], keepdims=1)))
    return op.Div(powers, op.ReduceSum(powers, [axis], keepdims=1)), axis


def _summed(op: Builder, value: ir.Value, axis: int) -> ir.Value:
    """The sum over all axes but one, from the last to the first."""
    for other in reversed([i for i in range(len(dims(value))) if i != axis]):
        value = op.ReduceSum(value, [other], keepdims=0)
    return value


def _along(value: ir.Value, axis: int) -> int:
    size = dims(value)[axis]
    assert isinstance(size, int)
    return size


def _builder(context: Context, name: str, *inputs: str) -> tuple[Builder, list[ir.Value]]:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": context.opset}, name=name)
    shape = list(context.head.positions)
    values = [ir.val(given, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape)) for given in inputs]
    graph.inputs.extend(values)
    return Builder(graph, ROOM, context.opset), values


def _chosen(op: Builder, entropies: ir.Value, threshold: float) -> ir.Value:
    """1 where the entropy is below the threshold, else (NaN included) 0."""
    return op.Cast(op.Less(entropies, threshold), to=int(ir.DataType.FLOAT))
