"""Which samples a step learns from: entropies become one weight a sample, filters as 0/1, never indexing.

Each graph reads `entropy.samples` [N] of the forward, hands `sample.weights` [N] to the backward, and counts.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ttac.passes.adapt import StateTensor, state_input
from ttac.passes.build import Builder
from ttac.passes.losses import SAMPLES, WEIGHTS
from ttac.passes.method_graphs import Context, MethodGraph, finished

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
    count = op.ReduceSum(chosen, keepdims=0)
    weights = op.Div(chosen, op.Max(count, 1.0))
    return finished(op, {WEIGHTS: weights, CHOSEN: chosen, SELECTED: count}, stats={SELECTED: "selected"})


def confirm(context: Context) -> MethodGraph:
    """Weights 1/n on the n samples that were chosen and have H < E0 again, perturbed; and their mean entropy."""
    op, (entropies, before) = _builder(context, "confirm", SAMPLES, CHOSEN)
    chosen = op.Mul(_chosen(op, entropies, margin(context)), before)
    count = op.ReduceSum(chosen, keepdims=0)
    weights = op.Div(chosen, op.Max(count, 1.0))
    loss = op.ReduceSum(op.Mul(weights, entropies), keepdims=0)
    outputs = {WEIGHTS: weights, CONFIRMED: count, AGAIN: loss}
    return finished(op, outputs, stats={CONFIRMED: "confirmed"})


def select(context: Context) -> MethodGraph:
    """Weights e^(E0 - H)/n on the n samples that are reliable and not redundant (EATA, arXiv:2204.02610, eq. 2 to 6).

    Redundant: |cos| of the probabilities to their moving average m is `redundancy` or more.  m is zeros while empty,
    which is similar to nothing; it follows the mean probabilities of the selected samples.
    """
    op, (entropies,) = _builder(context, "select", SAMPLES)
    logits = ir.val(context.logits, dtype=ir.DataType.FLOAT, shape=["N", context.classes])
    op.graph.inputs.append(logits)
    initial = np.zeros(context.classes, np.float32)
    average = state_input(op.graph, "eata.mean", initial)
    threshold = margin(context)
    p = op.Softmax(logits, axis=-1)
    length = op.Mul(_length(op, p), _length(op, average))
    cosine = op.Div(op.ReduceSum(op.Mul(p, average), [1], keepdims=0), op.Max(length, TINY))
    fresh = op.Cast(op.Less(op.Abs(cosine), float(context.settings["redundancy"])), to=int(ir.DataType.FLOAT))
    chosen = op.Mul(_chosen(op, entropies, threshold), fresh)
    count = op.ReduceSum(chosen, keepdims=0)
    some = op.Max(count, 1.0)
    weights = op.Div(op.Mul(chosen, op.Exp(op.Sub(threshold, op.Min(entropies, threshold)))), some)
    mean = op.Div(op.ReduceSum(op.Mul(p, op.Unsqueeze(chosen, [1])), [0], keepdims=0), some)
    blended = op.Add(op.Mul(average, 0.9), op.Mul(mean, 0.1))
    started = op.Greater(op.ReduceSum(average, keepdims=0), 0.0)
    following = op.Where(op.Greater(count, 0.0), op.Where(started, blended, mean), average)
    state = StateTensor("eata.mean", "optimizer", initial, average, following)
    return finished(op, {WEIGHTS: weights, SELECTED: count}, [state], {SELECTED: "selected"})


def _builder(context: Context, name: str, *inputs: str) -> tuple[Builder, list[ir.Value]]:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": context.opset}, name=name)
    values = [ir.val(given, dtype=ir.DataType.FLOAT, shape=["N"]) for given in inputs]
    graph.inputs.extend(values)
    return Builder(graph, ROOM, context.opset), values


def _chosen(op: Builder, entropies: ir.Value, threshold: float) -> ir.Value:
    """1 where the entropy is below the threshold, else (NaN included) 0."""
    return op.Cast(op.Less(entropies, threshold), to=int(ir.DataType.FLOAT))


def _length(op: Builder, value: ir.Value) -> ir.Value:
    """The Euclidean length of the last axis."""
    return op.ReduceL2(value, [-1], keepdims=0)
