"""Predictions of images and of their distortions that shall agree: the weights of `two_views.consistent_entropy`."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.differentiate.losses import SAMPLES, WEIGHTS, mean, surprises, total
from ttac.passes.graph.builder import Builder
from ttac.passes.step_graphs.context import (
    Context,
    MethodGraph,
    Subject,
    finished,
    new_graph,
    read,
)
from ttac.passes.step_graphs.pixel_range import check_images
from ttac.passes.step_graphs.sample_weights import ones
from ttac.passes.step_graphs.two_views import AS_PREDICTION, AS_TARGET, OTHER, kept_gradients, summed_gradients

CONSISTENCY = "consistency"


def check(subject: Subject) -> None:
    """Raise UnsupportedError unless the model reads images, UsageError for samples outside the range of pixels."""
    check_images(subject, where="`--set cr=true`", hint="leave `cr` out")


def probe(context: Context) -> MethodGraph:
    """The plain mean of the entropies, and no term of another view."""
    op, scores, entropies = _begun("probe", context)
    each = ones(op, entropies)
    count = total(op, each)
    zero = op.Mul(count, 0.0)
    outputs = {WEIGHTS: op.Div(each, count), OTHER: op.Identity(scores)}
    return finished(op, {**outputs, AS_TARGET: zero, AS_PREDICTION: op.Identity(zero)})


def plain_view(context: Context) -> MethodGraph:
    """The plain view's scores as the target of the distorted view, which learns nothing else."""
    op, scores, entropies = _begun("plain_view", context)
    weight = _weight(op, context, entropies)
    outputs = {WEIGHTS: op.Mul(entropies, 0.0), OTHER: op.Identity(scores)}
    return finished(op, {**outputs, AS_TARGET: op.Mul(weight, 0.0), AS_PREDICTION: weight})


def keep_gradients(context: Context) -> MethodGraph:
    """The distorted view's gradients as `<gradient>.kept`, and its scores for the comparison with the plain view's."""
    op, scores, entropies = _begun("keep_gradients", context)
    weight = _weight(op, context, entropies)
    outputs = kept_gradients(op, context)
    return finished(op, {**outputs, OTHER: op.Identity(scores), AS_TARGET: weight, AS_PREDICTION: op.Mul(weight, 0.0)})


def add_gradients(context: Context) -> MethodGraph:
    """The gradients of both views as `<gradient>.sum`; the graph reports the mean of CE(p, q)."""
    op = new_graph("add_gradients", context.opset)
    scores, other = (read(op, name, context.head.shape) for name in (context.logits, OTHER))
    sums = summed_gradients(op, context)
    apart = mean(op, surprises(op, scores, other, context.head), CONSISTENCY)
    return finished(op, {**sums, CONSISTENCY: apart}, stats={CONSISTENCY: "consistency"})


def _begun(name: str, context: Context) -> tuple[Builder, ir.Value, ir.Value]:
    """A graph with its inputs: the scores, and the entropies at each position."""
    op = new_graph(name, context.opset)
    return op, read(op, context.logits, context.head.shape), read(op, SAMPLES, context.head.positions)


def _weight(op: Builder, context: Context, entropies: ir.Value) -> ir.Value:
    """cr_weight/n, a scalar; n is the number of positions."""
    return op.Div(float(context.settings["cr_weight"]), total(op, ones(op, entropies)))
