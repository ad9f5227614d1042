"""The loss and the weights of ROID (Marsden et al., arXiv:2306.00650)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.losses import SAMPLES, WEIGHTS, Loss, entropies, mean, surprises, total
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs import augmentation
from ttac.passes.step_graphs.answer import refuse_other_answers
from ttac.passes.step_graphs.augmentation import image_sizes
from ttac.passes.step_graphs.context import Context, MethodGraph, Subject, finished, new_graph, read
from ttac.passes.step_graphs.pixel_range import check_images, pixel_range
from ttac.passes.step_graphs.two_views import kept_gradients, summed_gradients

OTHER, ALIKE, CHOSEN, FREQUENCIES = "other.scores", "alike.weights", "chosen.weights", "classes.average"
MOST, FLOOR = 0.99, 1e-5
"""Largest probability in the likelihood ratio, and the number added to the ratio, as in the authors' code."""
TINY = 1e-8
"""Least product of lengths in a cosine, and least spread that scales a weight."""


def check(subject: Subject) -> None:
    """Raise UnsupportedError unless the model takes images and predicts one class, UsageError for stray samples."""
    refuse_other_answers(subject, "`roid` corrects the frequencies of classes")
    check_images(
        subject, where="`--method roid`", hint="take `--method eata`; `ttac inspect` lists the methods that fit"
    )


def likely_and_alike(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """sum_i w_i SLR(p_i) + sum_i a_i SCE(p_i, q_i), with q of the scores of another view, which has no gradient.

    SLR(p) = -sum_c p_c ln(p_c/(1 - p_c) + 1e-5) with p at most 0.99; SCE(p, q) = (CE(p, q) + CE(q, p))/2.  With a run
    for each view, the gradients add up to that of the symmetric SCE through both views.
    """
    plain = entropies(op, scores, head)
    plain.name = SAMPLES
    weights, alike = (ir.val(name, dtype=plain.dtype, shape=plain.shape) for name in (WEIGHTS, ALIKE))
    other = ir.val(OTHER, dtype=scores.dtype, shape=scores.shape)
    op.graph.inputs.extend([weights, other, alike])
    p = op.Clip(op.Softmax(scores, axis=1), 0.0, MOST)
    ratio = op.Log(op.Add(op.Div(p, op.Sub(1.0, p)), FLOOR))
    likely = op.Neg(op.ReduceSum(op.Mul(p, ratio), [1], keepdims=0))
    both = op.Mul(op.Add(surprises(op, scores, other, head), surprises(op, other, scores, head)), 0.5)
    scalar = op.Add(total(op, op.Mul(likely, weights)), total(op, op.Mul(both, alike)), name="likely.and.alike")
    return Loss(
        scalar=scalar,
        stats={"entropy": mean(op, plain, "entropy")},
        head=head,
        samples=plain,
        weights=weights,
        scores=scores,
        other_inputs=(other, alike),
    )


def augment(context: Context) -> MethodGraph:
    """The lightly distorted view of the kept samples."""
    assert context.x is not None
    black, white = pixel_range(context.settings, image_sizes(context.x)[1])
    return augmentation.augment(context, black, white, int(context.settings["seed"]), light=True, chosen=CHOSEN)


def weigh_diverse(context: Context) -> MethodGraph:
    """Weights exp(d_i c_i / t)/B of samples with d_i of at least the mean d, else 0; the average probabilities move.

    d_i = 1 - cos(average, p_i) and c_i = -H_i, both scaled to [0, 1] over the batch; B is the planned batch.  The
    average begins even and takes in the batch after its use.  The distorted view has the kept samples, and learns from
    their scores in the plain view.
    """
    op = new_graph("weigh_diverse", context.opset)
    scores, entropy = read(op, context.logits, context.head.shape), read(op, SAMPLES, context.head.positions)
    p = op.Softmax(scores, axis=1)
    initial = np.full(context.classes, 1 / context.classes, np.float32)
    average = state_input(op.graph, FREQUENCIES, initial)
    length = op.Mul(op.ReduceL2(p, [1], keepdims=0), op.ReduceL2(average, keepdims=0))
    cosine = op.Div(op.ReduceSum(op.Mul(p, average), [1], keepdims=0), op.Max(length, TINY))
    diverse, certain = (_unit(op, value) for value in (op.Sub(1.0, cosine), op.Neg(entropy)))
    kept = op.GreaterOrEqual(diverse, op.ReduceMean(diverse, [0], keepdims=1))
    strength = op.Exp(op.Mul(op.Mul(diverse, certain), 1.0 / float(context.settings["temperature"])))
    weights = op.Mul(op.Where(kept, strength, 0.0), 1.0 / context.batch)
    count = op.ReduceSum(op.Cast(kept, to=int(ir.DataType.FLOAT)), [0], keepdims=0)
    decay = float(context.settings["probabilities_decay"])
    following = op.Add(op.Mul(average, decay), op.Mul(op.ReduceMean(p, [0], keepdims=0), 1.0 - decay))
    state = StateTensor(name=FREQUENCIES, role="optimizer", initial=initial, value=average, next=following)
    alike = op.Compress(weights, kept, axis=0)
    view = {OTHER: op.Compress(scores, kept, axis=0), WEIGHTS: op.Mul(alike, 0.0), ALIKE: alike}
    return finished(op, {CHOSEN: weights, **view, "selected": count}, [state], {"selected": "selected"})


def _unit(op: Builder, values: ir.Value) -> ir.Value:
    """The values [N] scaled to [0, 1]; zeros if all are equal."""
    least, largest = op.ReduceMin(values, [0], keepdims=1), op.ReduceMax(values, [0], keepdims=1)
    return op.Div(op.Sub(values, least), op.Max(op.Sub(largest, least), TINY))


def keep_gradients(context: Context) -> MethodGraph:
    """The distorted view's gradients as `<gradient>.kept`; the plain view learns from the distorted view's scores.

    Samples that are not kept weigh 0, and their scores are 0.
    """
    op = new_graph("keep_gradients", context.opset)
    weights = read(op, CHOSEN, context.head.positions)
    scores = read(op, context.logits, [f"{augmentation.CHOSEN}.{context.head.shape[0]}", *context.head.shape[1:]])
    places = op.Transpose(op.NonZero(weights), perm=[1, 0])
    shape = op.Concat(op.Shape(weights), op.constant(np.array(context.head.shape[1:], np.int64)), axis=0)
    other = op.ScatterND(op.Expand(0.0, shape), places, scores)
    learned = {OTHER: other, WEIGHTS: op.Identity(weights), ALIKE: op.Identity(weights)}
    return finished(op, {**kept_gradients(op, context), **learned})


def add_gradients(context: Context) -> MethodGraph:
    """The gradients of both views as `<gradient>.sum`."""
    op = new_graph("add_gradients", context.opset)
    return finished(op, summed_gradients(op, context))
