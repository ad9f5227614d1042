"""Teacher and student of RoTTA (Yuan et al., arXiv:2303.13899): predictions, loss, and averages of the norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.differentiate.heads import Head, scores_of
from ttac.passes.differentiate.losses import WEIGHTS, Loss, entropies, mean, surprises
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor
from ttac.passes.step_graphs import optimizers, two_views
from ttac.passes.step_graphs.answer import ANSWER, refuse_other_answers
from ttac.passes.step_graphs.context import Context, MethodGraph, Subject, finished, new_graph, read, taken_over
from ttac.passes.step_graphs.pixel_range import check_images
from ttac.passes.step_graphs.teacher_average import TARGET, follow
from ttac.passes.step_graphs.window import predicted
from ttac.spec import TEACHER_SET

SURE = 1e-6
"""Added to a probability in its logarithm, as in the code."""
FLOAT = int(ir.DataType.FLOAT)


def check(subject: Subject) -> None:
    """Raise UnsupportedError unless the model takes one input of images and has one output, a class of each sample."""
    hint = "take `--method tent`; `ttac inspect` lists the methods that fit"
    refuse_other_answers(subject, "`rotta` balances predicted classes")
    check_images(subject, where="`--method rotta`", hint=hint)
    graph = subject.model.graph
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        if len(values) > 1:
            raise UnsupportedError(
                f"the memory serves one {kind}, and the model has {len(values)}",
                where=", ".join(f"`{value.name}`" for value in values),
                hint=hint,
            )


def aged(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """mean_i w_i CE(t_i, p_i), t the teacher's probabilities and w weights by age, both without gradient (eq. 11)."""
    target = ir.val(TARGET, dtype=scores.dtype, shape=scores.shape)
    each = surprises(op, target, scores, head)
    weights = ir.val(WEIGHTS, dtype=each.dtype, shape=each.shape)
    op.graph.inputs.extend([weights, target])
    scalar = mean(op, op.Mul(each, weights), "taught")
    plain = mean(op, entropies(op, scores, head), "entropy")
    return Loss(
        scalar=scalar, stats={"entropy": plain}, head=head, scores=scores, weights=weights, other_inputs=(target,)
    )


def classify(context: Context) -> MethodGraph:
    """The class and the entropy of each sample [N] by the teacher, and the start of the insertions."""
    op, size = new_graph("classify", context.opset), int(context.settings["capacity"])
    given = read(op, predicted(context.output), context.head.shape)
    p = op.Softmax(scores_of(op, given, context.head), axis=1)
    doubts = op.Neg(op.ReduceSum(op.Mul(p, op.Log(op.Add(p, SURE))), [1], keepdims=0))
    zero = op.Mul(op.ReduceSum(doubts, keepdims=0), 0.0)
    outputs = {
        ANSWER: op.Identity(given),
        "sample.classes": op.Cast(op.ArgMax(p, axis=1, keepdims=0), to=FLOAT),
        "sample.entropies": doubts,
        "places": op.Add(np.arange(size, dtype=np.float32), zero),
        "number": op.Identity(zero),
    }
    return finished(op, outputs)


def teach(context: Context) -> MethodGraph:
    """The teacher's scores of the memory, and the teacher's running averages after it."""
    op = new_graph("teach", context.opset)
    target = op.Identity(read(op, context.logits, context.head.shape), name=TARGET)
    op.graph.outputs.append(target)
    return taken_over(op, context.tracked, f"{TEACHER_SET}.", "optimizer")


def follow_memory(context: Context) -> MethodGraph:
    """The student's running averages after the distorted memory."""
    return taken_over(new_graph("follow_memory", context.opset), context.tracked, role="statistic")


def augment(context: Context) -> MethodGraph:
    """The distorted samples of the memory."""
    return two_views.augment(replace(context, batch=int(context.settings["capacity"])))


def update(context: Context) -> MethodGraph:
    """One step of the optimizer, then the teacher's average of the parameters (eq. 10)."""

    def after(op: Builder, flat: ir.Value, members: Sequence[StateTensor]) -> tuple[ir.Value, list[StateTensor]]:
        return flat, follow(op, flat, members, float(context.settings["teacher_decay"]))

    return optimizers.update(context, after=after)
