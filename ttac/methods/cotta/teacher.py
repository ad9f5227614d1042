"""The teacher of CoTTA: its prediction for a batch, over distorted views where the source is unsure, and the loss."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.losses import Loss, entropies, mean, surprises
from ttac.passes.graph.builder import Builder
from ttac.passes.step_graphs.answer import ANSWER, in_output_form, refuse_other_answers
from ttac.passes.step_graphs.context import Context, MethodGraph, Subject, finished, new_graph, read
from ttac.passes.step_graphs.pixel_range import check_images
from ttac.passes.step_graphs.teacher_average import TARGET

BEFORE = "teacher.before"
FLOAT = int(ir.DataType.FLOAT)


def check(subject: Subject) -> None:
    """Raise UnsupportedError unless the model takes images and predicts one class, UsageError for stray samples."""
    refuse_other_answers(subject, "`cotta` averages predictions of one class")
    check_images(
        subject, where="`--method cotta`", hint="take `--method tent`; `ttac inspect` lists the methods that fit"
    )


def taught(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """mean_i CE(t_i, p_i), t the teacher's probabilities, which have no gradient (eq. 5)."""
    target = _target(op, scores)
    return _loss(op, scores, head, target, mean(op, surprises(op, target, scores, head), "taught"))


def taught_both_ways(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """mean_i CE(t_i, p_i)/2 + CE(p_i, t_i)/2, as in the official code for ImageNet."""
    target = _target(op, scores)
    both = op.Add(surprises(op, target, scores, head), surprises(op, scores, target, head))
    return _loss(op, scores, head, target, mean(op, op.Mul(both, 0.5), "taught"))


def _target(op: Builder, scores: ir.Value) -> ir.Value:
    target = ir.val(TARGET, dtype=scores.dtype, shape=scores.shape)
    op.graph.inputs.append(target)
    return target


def _loss(op: Builder, scores: ir.Value, head: Head, target: ir.Value, scalar: ir.Value) -> Loss:
    plain = mean(op, entropies(op, scores, head), "entropy")
    return Loss(scalar=scalar, stats={"entropy": plain}, head=head, scores=scores, other_inputs=(target,))


def confidence(context: Context) -> MethodGraph:
    """`unsure` is 1 if the mean probability of the likeliest class is below settings["confidence"], else 0."""
    op = new_graph("confidence", context.opset)
    scores = read(op, context.logits, context.head.shape)
    certain = mean(op, op.ReduceMax(op.Softmax(scores, axis=1), [1], keepdims=0), "certain")
    unsure = op.Cast(op.Less(certain, float(context.settings["confidence"])), to=FLOAT)
    return finished(op, {"unsure": unsure}, stats={"unsure": "unsure"})


def plain_view(context: Context) -> MethodGraph:
    """The teacher's scores of the batch itself."""
    op = new_graph("plain_view", context.opset)
    return finished(op, {TARGET: op.Identity(read(op, context.logits, context.head.shape))})


def no_view(context: Context) -> MethodGraph:
    """Zeros, from which the mean over views starts."""
    op = new_graph("no_view", context.opset)
    return finished(op, {TARGET: op.Mul(read(op, context.logits, context.head.shape), 0.0)})


def add_view(context: Context) -> MethodGraph:
    """The scores so far and a part of the scores of this view, 1 / number of views."""
    op = new_graph("add_view", context.opset)
    before, scores = (read(op, name, context.head.shape) for name in (BEFORE, context.logits))
    return finished(op, {TARGET: op.Add(before, op.Mul(scores, 1.0 / int(context.settings["views"])))})


def answer(context: Context) -> MethodGraph:
    """The teacher's prediction in the form of the model's output."""
    op = new_graph("answer", context.opset)
    scores = read(op, TARGET, context.head.shape)
    return finished(op, {ANSWER: in_output_form(op, scores, context.head)})
