"""The belief in each class of the window at hand, from its prediction and the window before (arXiv:2605.04617)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.differentiate.heads import scores_of
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.context import Subject
from ttac.passes.step_graphs.linear_head import (
    SHORTEST,
    class_head,
    flat_features,
    last_linear,
    replace_output,
    unit_rows,
    weight_rows,
)

ROOM = "refine"
PROTOTYPES, HABIT, BELIEF, SEEN = "sight.prototypes", "sight.habit", "sight.belief", "sight.windows"
ROLES = {PROTOTYPES: "statistic", HABIT: "statistic", BELIEF: "statistic", SEEN: "counter"}
LAST = int(np.iinfo(np.int64).max)
"""End of a slice that reaches the last row."""
FLOOR = 1e-8
"""Least prior probability of a class, and least length in a cosine, as in the authors' code."""


def check(subject: Subject) -> None:
    """Raise UnsupportedError for steps of more than one sample, which have no order inside a graph."""
    if subject.batch != 1:
        raise UnsupportedError(
            "`sight` carries its belief from one sample to the next, and a batch has no order of time",
            where=f"`--batch {subject.batch}`",
            hint="`--batch 1`; for batches of neighbours take `--method lame`",
        )


def believe(subject: Subject) -> list[StateTensor]:
    """Put the belief q in the place of the model's prediction p, in the same form: in place.

    With prototypes m [classes, D], frequencies h and the last belief q': the expected features are u = m^T q', the
    doubt is d = 1 - exp(-`surprise` (1 - cos(e, u))^2), and f is softmax_k(cos(e - u, m_k - u)/`temperature`) sqrt(h),
    scaled to the sum 1.  The belief is q = p ((1 - d) q' + d f), scaled likewise; the first belief is p.

    Raises UnsupportedError unless a linear layer with a constant weight predicts one class of each sample.
    """
    head = class_head(subject, "`sight` believes in one class of each window")
    graph, settings = subject.model.graph, subject.settings
    op = Builder(graph, ROOM, subject.model.opset_imports[""])
    with op.at("belief"):
        scores = scores_of(op, graph.outputs[0])
        layer = last_linear(scores, "believe in")
        initial = _initial(weight_rows(layer))
        before = {name: state_input(graph, name, value) for name, value in initial.items()}
        features = flat_features(op, layer)
        begun = op.Greater(before[SEEN], 0.0)
        prior = op.Where(begun, _prior(op, features, before, settings), 1.0)
        logarithm = op.LogSoftmax(op.Add(op.LogSoftmax(scores, axis=1), op.Log(prior)), axis=1)
        belief = op.Exp(logarithm)
        # A step has one sample; the verification runs the graph on two, with the same last belief.
        last, window = (op.Slice(value, [-1], [LAST], [0]) for value in (belief, features))
        rate = op.Mul(op.Cast(begun, to=int(ir.DataType.FLOAT)), float(settings["habit_rate"]))
        after = {
            PROTOTYPES: _moved(op, window, last, before[PROTOTYPES], initial[PROTOTYPES], settings),
            HABIT: op.Add(before[HABIT], op.Mul(op.Sub(before[BELIEF], before[HABIT]), rate)),
            BELIEF: last,
            SEEN: op.Add(before[SEEN], 1.0),
        }
    for name, value in after.items():
        value.name = f"{name}.next"
    replace_output(subject, belief if head.values == "probabilities" else logarithm)
    return [
        StateTensor(name=name, role=role, initial=initial[name], value=before[name], next=after[name])
        for name, role in ROLES.items()
    ]


def _initial(rows: np.ndarray) -> dict[str, np.ndarray]:
    """The state before the first window: the rows of the classifier's weight with length 1, and even frequencies."""
    source = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), SHORTEST)
    classes = (1, len(rows))
    even, zero = np.full(classes, 1 / len(rows), np.float32), np.zeros(classes, np.float32)
    return {PROTOTYPES: source.astype(np.float32), HABIT: even, BELIEF: zero, SEEN: np.zeros((), np.float32)}


def _prior(op: Builder, features: ir.Value, before: Mapping[str, ir.Value], settings: Mapping[str, float]) -> ir.Value:
    """(1 - d) q' + d f, at least `FLOOR`, [N, classes]."""
    prototypes, belief = before[PROTOTYPES], before[BELIEF]
    expected = op.MatMul(belief, prototypes)
    apart = op.Sub(1.0, _cosines(op, features, expected))
    doubt = op.Sub(1.0, op.Exp(op.Mul(op.Mul(apart, apart), -float(settings["surprise"]))))
    likeness = _cosines(op, op.Sub(features, expected), op.Sub(prototypes, expected))
    movement = op.Softmax(op.Mul(likeness, 1.0 / float(settings["temperature"])), axis=1)
    usual = op.Mul(movement, op.Sqrt(before[HABIT]))
    usual = op.Div(usual, op.Max(op.ReduceSum(usual, [1], keepdims=1), FLOOR))
    return op.Max(op.Add(belief, op.Mul(op.Sub(usual, belief), doubt)), FLOOR)


def _cosines(op: Builder, rows: ir.Value, others: ir.Value) -> ir.Value:
    """The cosine of each of the rows [n, D] and each of the others [m, D], [n, m]."""
    units = [op.Div(each, op.Max(op.ReduceL2(each, [1], keepdims=1), FLOOR)) for each in (rows, others)]
    return op.MatMul(units[0], op.Transpose(units[1], perm=[1, 0]))


def _moved(
    op: Builder,
    features: ir.Value,
    belief: ir.Value,
    prototypes: ir.Value,
    source: np.ndarray,
    settings: Mapping[str, float],
) -> ir.Value:
    """The prototypes moved towards the features by their class's belief, then towards the source, with length 1."""
    share = op.Mul(op.Transpose(belief, perm=[1, 0]), float(settings["prototype_rate"]))
    towards = op.Add(prototypes, op.Mul(op.Sub(features, prototypes), share))
    return unit_rows(op, op.Add(towards, op.Mul(op.Sub(source, towards), float(settings["source_pull"]))))
