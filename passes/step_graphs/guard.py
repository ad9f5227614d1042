"""The guard: a step learns from no batch whose predictions carry little information, and stays near the source.

The information of a batch is H(mean p) - mean H(p), the mutual information of sample and class in nats (Krause et al.,
"Discriminative clustering by regularized information maximization", NeurIPS 2010).  It is near 0 for noise, constants,
repeated samples, one class, and for a model that collapsed.  Small batches are averaged over about `WINDOW` samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.heads import CERTAIN, Head, log_odds, scores_of
from ttac.passes.differentiate.losses import entropies
from ttac.passes.differentiate.losses import mean as average
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.check_set import check_clock, reach_input
from ttac.passes.step_graphs.context import Context, MethodGraph, counter, finished, new_graph, read
from ttac.passes.step_graphs.probabilities import over_positions, probabilities
from ttac.settings import is_guarded

GUARD, LEARN, RESET, DRIFT = "guard", "guard.learn", "guard.reset", "guard.drift"
INFORMATION, FOLLOWS = "guard.information", "guard.follow"
"""Outputs: the information of the batch, and 1 if statistics may follow the batch."""
STATS = {
    INFORMATION: "information",
    "guard.row.next": "held_in_a_row",
    "guard.held.next": "held",
    "guard.resets.next": "guard_resets",
}
"""Outputs with their names in `adapter.stats`."""
MARK = "follows"
"""In a `when` of a method: with the guard, its words happen wherever statistics may follow the batch."""
FOLLOWED = 0.1
"""Least fraction of the usual information of a batch that statistics follow: shifts of the data have more, and noise,
constants and single classes mostly less."""
TOTALS = ("guard.held", "guard.resets")
"""State that counts held batches and resets; no reset of the guard clears these counters."""
WINDOW = 16
"""Samples that the moving averages of a small batch cover; a batch of this size is judged alone."""
NEWEST = 0.01
"""Weight of a learned batch in the usual information, where no calibration data gave it."""
TINY = 1e-12
"""Added to a mean probability in its logarithm: 0 ln 0 is 0."""
FLOAT = int(ir.DataType.FLOAT)


def bounded(op: Builder, flat: ir.Value, members: Sequence[StateTensor], settings: Mapping[str, Any]) -> ir.Value:
    """The vector `flat` of the `members`, at most `guard_radius` from the source in units of the source's length.

    A farther vector moves to the sphere along the line to the source.  With a check set, rounds of the check that fail
    make the sphere smaller.  The first call in a graph names the drift.
    Tensors that no prediction reads have no bound.
    """
    if not is_guarded(settings) or members[0].role != "parameter":
        return flat
    radius = float(settings["guard_radius"])
    source = np.concatenate([p.initial.reshape(-1) for p in members]).astype(np.float32)
    length = float(np.linalg.norm(source.astype(np.float64))) or math.sqrt(source.size)
    moved = op.Sub(flat, source)
    distance = op.ReduceL2(moved, keepdims=0)
    limit = op.constant(np.array(radius * length, np.float32))
    limit = op.Mul(limit, reach_input(op.graph)) if settings.get("guard_check") else limit
    near = op.Div(limit, op.Max(distance, limit))
    drift = op.Mul(op.Min(distance, limit), 1.0 / length)
    if not any(value.name == DRIFT for value in op.graph.outputs):
        drift.name = DRIFT
        op.graph.outputs.append(drift)
    return op.Add(source, op.Mul(moved, near))


def drift_stats(model: ir.Model) -> dict[str, str]:
    """The reported names of an update graph: its drift, if the guard is on."""
    return {DRIFT: "drift"} if any(value.name == DRIFT for value in model.graph.outputs) else {}


def marginal(op: Builder, scores: ir.Value, head: Head, *, are_probabilities: bool = False) -> ir.Value:
    """The mean probabilities of all positions, [classes], or [2 * answers] with a binary head."""
    return over_positions(op.ReduceMean, *probabilities(op, scores, head, are_probabilities=are_probabilities))


def guard(
    context: Context,
    entropy: str,
    usual: float,
    shape: Sequence[int | str] | None = None,
    *,
    moved: Sequence[StateTensor] = (),
    marked: bool = False,
    checks: bool = False,
    rests: bool = False,
) -> MethodGraph:
    """The judgement of a batch: `guard.learn` is 1 if the step may learn, `guard.reset` is 1 if the state must reset.

    Args:
        entropy: name of the forward's output with the mean entropy; empty computes it from the scores.
        usual: information of a batch of calibration data; 0 follows the stream's.
        shape: of the value `context.logits`, where the scores are joined with coordinates of boxes.
        moved: statistics whose next values the forward gives; they become the state if they may follow the batch.
        marked: whether the step has words with `MARK`; then `guard.follow` is 1 if statistics may follow the batch.
        checks: whether the bundle has a check set (`ttac.passes.step_graphs.check_set`).
        rests: whether statistics follow no batch after a failed round of the check.
    """
    op, settings = new_graph(GUARD, context.opset), context.settings
    with op.at(GUARD):
        scores, mean = _scores(op, context, entropy, shape)
        information, window = _information(op, context, scores, mean, usual)
        level, followed = _usual(op, usual)
        # Not a number is not greater: a batch with NaN or infinity is held.
        good = op.GreaterOrEqual(information, op.Mul(level, float(settings["guard_information"])))
        state = [*window, *([_following(op, level, information, good)] if followed else [])]
        learn, reset, counters = _decided(op, good, settings)
        may = _may_follow(op, information, level, settings) if moved or marked else None
        if checks:
            learn, may, clocks = _checked(op, learn, may, int(settings["guard_check"]), rests=rests)
            counters += clocks
        kept = _kept(op, may, moved) if may is not None else []
    follows = {FOLLOWS: may} if marked and may is not None else {}
    outputs = {LEARN: learn, RESET: reset, **follows, INFORMATION: information}
    graph = finished(op, outputs, [*state, *counters], STATS)
    return replace(graph, state=(*graph.state, *kept))


def _may_follow(op: Builder, information: ir.Value, level: ir.Value, settings: Mapping[str, Any]) -> ir.Value:
    """1 if statistics may follow a batch with this information, else 0."""
    least = min(FOLLOWED, float(settings["guard_information"]))
    may: ir.Value = op.Cast(op.GreaterOrEqual(information, op.Mul(level, least)), to=FLOAT)
    return may


def _kept(op: Builder, may: ir.Value, tensors: Sequence[StateTensor]) -> list[StateTensor]:
    """The `tensors` with the next values that the forward gave if `may` is above 0, else with their own."""
    kept: list[StateTensor] = []
    follows = op.Greater(may, 0.0) if tensors else None
    for tensor in tensors:
        assert tensor.next is not None
        given, value = (state_input(op.graph, str(name), tensor.initial) for name in (tensor.next.name, tensor.name))
        following = op.Where(follows, given, value, name=f"{tensor.name}.kept")
        op.graph.outputs.append(following)
        kept.append(replace(tensor, value=value, next=following))
    return kept


def _scores(
    op: Builder, context: Context, entropy: str, shape: Sequence[int | str] | None
) -> tuple[ir.Value, ir.Value]:
    """The scores of the batch, without coordinates of boxes, or its probabilities where it has these; mean entropy."""
    head = context.head
    given = read(op, context.logits, shape or head.shape)
    if entropy:
        mean, joined = read(op, entropy, ()), shape is not None and tuple(shape) != tuple(head.shape)
        return (op.Slice(given, [head.first], [head.first + head.outputs], [head.axis]) if joined else given), mean
    are_probabilities = context.logits_are_probabilities
    scores = _scores_behind(op, given, head) if are_probabilities else scores_of(op, given, head)
    return given if are_probabilities else scores, average(op, entropies(op, scores, head), "guard.mean")


def _scores_behind(op: Builder, probability: ir.Value, head: Head) -> ir.Value:
    """Scores whose Softmax, or Sigmoid with a binary head, is the `probability`."""
    return log_odds(op, probability) if head.binary else op.Log(op.Clip(probability, *CERTAIN))


def _checked(
    op: Builder, learn: ir.Value, may: ir.Value | None, every: int, *, rests: bool
) -> tuple[ir.Value, ir.Value | None, list[StateTensor]]:
    """Whether the step learns and statistics follow, where some steps check in place of it; the clocks of the check."""
    learns, awake, clocks = check_clock(op, every, rests=rests)
    return op.Mul(learn, learns), may if awake is None or may is None else op.Mul(may, awake), clocks


def _decided(op: Builder, good: ir.Value, settings: Mapping[str, Any]) -> tuple[ir.Value, ir.Value, list[StateTensor]]:
    """Whether the step learns, whether the state resets (both 1 or 0), and the counters, for a batch that is `good`."""
    learned = op.Cast(good, to=FLOAT)
    row = counter(op, "guard.row", lambda before: op.Where(good, 0.0, op.Add(before, 1.0)))
    clock, due = _period(op, int(settings["guard_period"]))
    assert row.next is not None
    stuck = _reached(op, row.next, int(settings["guard_patience"]))
    reset = stuck if due is None else op.Max(stuck, due)
    learn = learned if due is None else op.Mul(learned, op.Sub(1.0, due))
    return learn, reset, [row, *clock, *_totals(op, learned, reset)]


def _totals(op: Builder, learned: ir.Value, reset: ir.Value) -> list[StateTensor]:
    """The counters of held batches and of resets; `learned` and `reset` are 0 or 1."""
    batches, resets = TOTALS
    return [
        counter(op, batches, lambda before: op.Sub(op.Add(before, 1.0), learned)),
        counter(op, resets, lambda before: op.Add(before, reset)),
    ]


def _reached(op: Builder, count: ir.Value, limit: int) -> ir.Value:
    """1 if the count is at its limit, else 0."""
    return op.Cast(op.GreaterOrEqual(count, float(limit)), to=FLOAT)


def _information(
    op: Builder, context: Context, scores: ir.Value, mean: ir.Value, usual: float
) -> tuple[ir.Value, list[StateTensor]]:
    """H(average p) - average H, and the state of the averages over about `WINDOW` samples."""
    p = marginal(op, scores, context.head, are_probabilities=context.logits_are_probabilities)
    answers = context.head.outputs if context.head.binary else 1
    size = dims(p)[0]
    assert isinstance(size, int)
    start = np.full(size, 1 / context.classes, np.float32)
    undecided = np.array(max(0.0, math.log(context.classes) - usual), np.float32)
    weight = op.Min(op.Mul(op.Cast(op.Squeeze(op.Shape(scores, start=0, end=1), [0]), to=FLOAT), 1 / WINDOW), 1.0)
    tensors, values = [], []
    for name, initial, now in (("guard.probabilities", start, p), ("guard.entropy", undecided, mean)):
        before = state_input(op.graph, name, initial)
        after = op.Add(before, op.Mul(op.Sub(now, before), weight))
        values.append(after)
        known = op.Where(op.Equal(mean, mean), after, before)
        tensors.append(StateTensor(name=name, role="counter", initial=initial, value=before, next=known))
    total = op.ReduceSum(op.Mul(values[0], op.Log(op.Add(values[0], TINY))), keepdims=0)
    return op.Sub(op.Mul(total, -1.0 / answers), values[1]), tensors


def _usual(op: Builder, usual: float) -> tuple[ir.Value, bool]:
    """The usual information, and whether it is state that follows the stream."""
    if usual:
        return op.constant(np.array(usual, np.float32)), False
    return state_input(op.graph, "guard.usual", np.zeros((), np.float32)), True


def _following(op: Builder, level: ir.Value, information: ir.Value, good: ir.Value) -> StateTensor:
    """The usual information as state: that of the first batch, then an average over learned batches."""
    average = op.Add(level, op.Mul(op.Sub(information, level), NEWEST))
    after = op.Where(good, op.Where(op.Greater(level, 0.0), average, information), level)
    zero = np.zeros((), np.float32)
    return StateTensor(name=str(level.name), role="counter", initial=zero, value=level, next=after)


def _period(op: Builder, period: int) -> tuple[list[StateTensor], ir.Value | None]:
    """The clock of a periodic reset, and 1 at the step that is due; without a period, neither."""
    if not period:
        return [], None
    clock = counter(op, "guard.clock", lambda before: op.Add(before, 1.0))
    assert clock.next is not None
    return [clock], _reached(op, clock.next, period)
