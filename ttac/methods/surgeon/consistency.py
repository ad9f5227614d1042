"""Predictions of images and of their distortions that shall agree, in one backward graph that runs once for each view.

The gradient of u*sum_i CE(p_i, q_i) through p and through q is a sum of two gradients: that of the distorted view with
p fixed, and that of the plain view with q fixed (`consistent_entropy`).  So the activations of the two views never
exist at the same time.  Between the runs exist a batch's scores and one gradient of each parameter.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.losses import SAMPLES, WEIGHTS, Loss, mean, surprises, total, weighted_entropy
from ttac.passes.graph.builder import Builder
from ttac.passes.step_graphs import augmentation
from ttac.passes.step_graphs.context import (
    Context,
    MethodGraph,
    Subject,
    finished,
    new_graph,
    read,
)
from ttac.passes.step_graphs.pixel_range import check_images, pixel_range
from ttac.passes.step_graphs.sample_weights import ones
from ttac.passes.step_graphs.two_views import kept_gradients, summed_gradients

OTHER, AS_TARGET, AS_PREDICTION = "other.scores", "consistency.as_target", "consistency.as_prediction"
CONSISTENCY = "consistency"


def check(subject: Subject) -> None:
    """Raise UnsupportedError unless the model reads images, UsageError for samples outside the range of pixels."""
    check_images(subject, where="`--set cr=true`", hint="leave `cr` out")


def consistent_entropy(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """sum_i w_i H(p_i) + u*sum_i CE(p_i, q_i) + v*sum_i CE(q_i, p_i) with q of the scores of another view.

    u weighs the plain view as the target of the distorted one, v as its prediction.  With u for one view and v for the
    other, the gradients add up to that of u*sum_i CE(p_i, q_i) through both.  `weighted_entropy` is the case u = v = 0.
    """
    loss = weighted_entropy(op, scores, head)
    other = ir.val(OTHER, dtype=scores.dtype, shape=scores.shape)
    scalars = [ir.val(name, dtype=scores.dtype, shape=ir.Shape([])) for name in (AS_TARGET, AS_PREDICTION)]
    op.graph.inputs.extend([other, *scalars])
    pairs = ((scores, other), (other, scores))
    terms = [op.Mul(total(op, surprises(op, *pair, head)), by) for pair, by in zip(pairs, scalars, strict=True)]
    scalar = op.Add(loss.scalar, op.Add(*terms), name="entropy.consistent")
    return replace(loss, scalar=scalar, other_inputs=(other, *scalars))


def probe(context: Context) -> MethodGraph:
    """The plain mean of the entropies, and no term of another view."""
    op, scores, entropies = _begun("probe", context)
    each = ones(op, entropies)
    count = total(op, each)
    zero = op.Mul(count, 0.0)
    outputs = {WEIGHTS: op.Div(each, count), OTHER: op.Identity(scores)}
    return finished(op, {**outputs, AS_TARGET: zero, AS_PREDICTION: op.Identity(zero)})


def augment(context: Context) -> MethodGraph:
    """The distorted view of the batch."""
    assert context.x is not None
    channels = augmentation.image_sizes(context.x)[1]
    black, white = pixel_range(context.settings, channels)
    return augmentation.augment(context, black, white, int(context.settings["seed"]))


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
