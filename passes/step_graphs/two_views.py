"""One backward graph that runs once for each view of a batch: predictions that shall agree, and added gradients.

The gradient of u*sum_i CE(p_i, q_i) through p and through q is a sum of two gradients: that of the distorted view with
p fixed, and that of the plain view with q fixed (`consistent_entropy`).  So the activations of the two views never
exist at the same time.  Between the runs exist a batch's scores and one gradient of each parameter.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.losses import Loss, surprises, total, weighted_entropy
from ttac.passes.graph.builder import Builder
from ttac.passes.step_graphs import augmentation, optimizers
from ttac.passes.step_graphs.context import Context, MethodGraph, read_gradients
from ttac.passes.step_graphs.pixel_range import pixel_range

KEPT, SUM = "kept", "sum"
OTHER, AS_TARGET, AS_PREDICTION = "other.scores", "consistency.as_target", "consistency.as_prediction"


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


def augment(context: Context) -> MethodGraph:
    """The distorted view of the batch."""
    assert context.x is not None
    black, white = pixel_range(context.settings, augmentation.image_sizes(context.x)[1])
    return augmentation.augment(context, black, white, int(context.settings["seed"]))


def kept_gradients(op: Builder, context: Context) -> dict[str, ir.Value]:
    """The gradients of the first view as outputs `<gradient>.kept`."""
    return {f"{gradient.name}.{KEPT}": op.Identity(gradient) for gradient in read_gradients(op, context)}


def summed_gradients(op: Builder, context: Context) -> dict[str, ir.Value]:
    """The gradients of both views as outputs `<gradient>.sum`."""
    gradients = read_gradients(op, context)
    kept = read_gradients(op, context, [f"{name}.{KEPT}" for name in context.gradients])
    return {f"{a.name}.{SUM}": op.Add(a, b) for a, b in zip(gradients, kept, strict=True)}


def update(context: Context) -> MethodGraph:
    """One step of the optimizer with the gradients of both views."""
    return optimizers.update(context, [f"{name}.{SUM}" for name in context.gradients])
