"""The learning rate of each tensor by its Fisher information, and one step of a new Adam (Park et al., 2311.05858)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.losses import SAMPLES, WEIGHTS, total
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs import optimizers
from ttac.passes.step_graphs.answer import refuse_other_answers
from ttac.passes.step_graphs.context import Context, MethodGraph, Subject, finished, new_graph, read, read_gradients
from ttac.passes.step_graphs.pixel_range import check_images
from ttac.passes.step_graphs.sample_weights import ones
from ttac.passes.step_graphs.two_views import AS_PREDICTION, AS_TARGET, OTHER, SUM, kept_gradients, summed_gradients

DISTORTED, INFORMATION, RATES = "distorted.scores", "fisher.mean", "tensor.rates"
CERTAIN = 1000.0
"""Score of a class whose probability is exactly 1 in float32, where all other scores are 0."""
TINY = 1e-8
"""Added to the range of the Fisher information, and Adam's epsilon, as in the code."""


def check(subject: Subject) -> None:
    """Raise UnsupportedError unless the model takes images and predicts one class, UsageError for stray samples."""
    refuse_other_answers(subject, "`law` learns from the likeliest class")
    check_images(
        subject, where="`--method law`", hint="take `--method tent`; `ttac inspect` lists the methods that fit"
    )


def distorted_scores(context: Context) -> MethodGraph:
    """The scores of the distorted view, which the plain view learns from."""
    op = new_graph("distorted_scores", context.opset)
    return finished(op, {DISTORTED: op.Identity(read(op, context.logits, context.head.shape))})


def likeliest(context: Context) -> MethodGraph:
    """The loss that measures the tensors: the mean of -ln p of the likeliest class, which is a constant target."""
    op, scores, each = _begun("likeliest", context)
    classes = op.constant(np.array([0.0, CERTAIN], np.float32))
    target = op.OneHot(op.ArgMax(scores, axis=1, keepdims=0), [context.classes], classes, axis=1)
    share = op.Reciprocal(total(op, each))
    zero = op.Mul(share, 0.0)
    outputs = {WEIGHTS: op.Mul(each, 0.0), OTHER: target, AS_TARGET: zero, AS_PREDICTION: share}
    return finished(op, outputs)


def rates(context: Context) -> MethodGraph:
    """The rate of each tensor [tensors]: lr * ((s - min s)/(max s - min s))^exponent, s = sqrt(F).

    F is the sum over all batches of the tensor's mean squared gradient, the state `fisher.mean`.
    """
    op = new_graph("rates", context.opset)
    initial = np.zeros(len(context.parameters), np.float32)
    before = state_input(op.graph, INFORMATION, initial)
    squares = [op.ReduceMean(op.Mul(flat, flat), [0], keepdims=1) for flat in _flat_gradients(op, context)]
    after = op.Add(before, op.Concat(*squares, axis=0))
    root = op.Sqrt(after)
    least, most = op.ReduceMin(root, [0], keepdims=1), op.ReduceMax(root, [0], keepdims=1)
    share = op.Div(op.Sub(root, least), op.Add(op.Sub(most, least), TINY))
    power = op.Pow(share, op.constant(np.array(context.settings["exponent"], np.float32)))
    each = op.Mul(power, float(context.settings["lr"]))
    state = StateTensor(name=INFORMATION, role="optimizer", initial=initial, value=before, next=after)
    return finished(op, {RATES: each}, [state])


def plain_view(context: Context) -> MethodGraph:
    """The mean entropy and the mean of CE(p, q), with the gradient through p, the target of the distorted view."""
    op, _, each = _begun("plain_view", context)
    share = op.Reciprocal(total(op, each))
    weight = op.Mul(share, float(context.settings["agreement"]))
    outputs = {WEIGHTS: op.Mul(each, share), OTHER: op.Identity(read(op, DISTORTED, context.head.shape))}
    return finished(op, {**outputs, AS_TARGET: weight, AS_PREDICTION: op.Mul(weight, 0.0)})


def distorted_view(context: Context) -> MethodGraph:
    """The plain view's gradients as `<gradient>.kept`; the distorted view learns from the plain view's scores."""
    op, scores, each = _begun("distorted_view", context)
    weight = op.Mul(op.Reciprocal(total(op, each)), float(context.settings["agreement"]))
    outputs = {WEIGHTS: op.Mul(each, 0.0), OTHER: op.Identity(scores), AS_TARGET: op.Mul(weight, 0.0)}
    return finished(op, {**outputs, **kept_gradients(op, context), AS_PREDICTION: weight})


def directions(context: Context) -> MethodGraph:
    """The step of each tensor as `<gradient>.sum`: rate * g/(|g| + eps), the first step of Adam, for both views' g."""
    op = new_graph("directions", context.opset)
    each = read(op, RATES, [len(context.parameters)])
    count = len(context.parameters)
    parts = op.Split(each, [1] * count, axis=0, outputs=count) if count > 1 else [each]
    steps = {
        name: op.Mul(op.Div(g, op.Add(op.Abs(g), TINY)), rate)
        for (name, g), rate in zip(summed_gradients(op, context).items(), parts, strict=True)
    }
    return finished(op, steps)


def update(context: Context) -> MethodGraph:
    """The parameters less their steps; no moment of a gradient survives a batch, as the code makes a new Adam."""
    plain = {**context.settings, "optimizer": "sgd", "lr": 1.0, "momentum": 0.0}
    return optimizers.update(replace(context, settings=plain), [f"{name}.{SUM}" for name in context.gradients])


def _begun(name: str, context: Context) -> tuple[Builder, ir.Value, ir.Value]:
    """A graph with its inputs: the scores, and 1 for each sample."""
    op = new_graph(name, context.opset)
    scores, entropies = read(op, context.logits, context.head.shape), read(op, SAMPLES, context.head.positions)
    return op, scores, ones(op, entropies)


def _flat_gradients(op: Builder, context: Context) -> list[ir.Value]:
    """The gradients as vectors."""
    return [g if len(g.shape or ()) == 1 else op.Reshape(g, [-1]) for g in read_gradients(op, context)]
