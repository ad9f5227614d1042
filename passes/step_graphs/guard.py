"""The guard: a step learns from no batch whose predictions carry little information, and stays near the source.

The information of a batch is H(mean p) - mean H(p), the mutual information of sample and class in nats (Krause et al.,
"Discriminative clustering by regularized information maximization", NeurIPS 2010).  It is near 0 for noise, constants,
repeated samples, one class, and for a model that collapsed.  Small batches are averaged over about `WINDOW` samples.
Every node counts: behind a forward, which has filled the caches, a tiny node takes several microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.heads import Head
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.batch_information import AVERAGES, batch_information
from ttac.passes.step_graphs.check_set import check_clock, reach_input
from ttac.passes.step_graphs.context import Context, MethodGraph, counter, finished, new_graph, read
from ttac.passes.step_graphs.probabilities import over_positions, probabilities
from ttac.settings import is_guarded

GUARD, HOLD = "guard", "guard-hold"
"""The judgement of every batch, and the graph that only a held batch runs."""
LEARN, RESET, DRIFT = "guard.learn", "guard.reset", "guard.drift"
INFORMATION, FOLLOWS = "guard.information", "guard.follow"
"""Outputs: the information of the batch, and 1 if statistics may follow the batch."""
ROW, HELD, RESETS, CLOCK = "guard.row", "guard.held", "guard.resets", "guard.clock"
"""State: held batches in a row and in all, resets, and the steps that are left until a periodic reset."""
IS_HELD, IS_EARLY = f"{ROW}.next", f"{CLOCK}.next"
"""Outputs above 0 for a held batch, and until a periodic reset is due."""
MARK = "follows"
"""In a `when` of a method: with the guard, its words happen wherever statistics may follow the batch."""
FOLLOWED = 0.1
"""Least fraction of the usual information of a batch that statistics follow: shifts of the data have more, and noise,
constants and single classes mostly less."""
TOTALS = (HELD, RESETS)
"""State that counts held batches and resets; no reset of the guard clears these counters."""
NEWEST = 0.01
"""Weight of a learned batch in the usual information, where no calibration data gave it."""
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
    """The judgement of a batch: `guard.row.next` is above 0 if the step must learn nothing.

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
        information, averages = batch_information(op, context, entropy, usual, shape)
        level = usual or state_input(op.graph, "guard.usual", np.zeros((), np.float32))
        good = _is_good(op, context, information, level)
        state = [averages, counter(op, ROW, lambda before: op.Where(good, 0.0, op.Add(before, 1.0)))]
        state += [_following(op, level, information, good)] if isinstance(level, ir.Value) else []
        state += [_clock(op, int(settings["guard_period"]))] if settings["guard_period"] else []
        learn, awake, clock = (
            _checked(op, good, int(settings["guard_check"]), rests=rests) if checks else ({}, None, [])
        )
        may = _may_follow(op, (information, level, good), awake, settings) if moved or marked else good
        follows = {FOLLOWS: op.Cast(may, to=FLOAT)} if marked else {}
        kept = [_kept(op, may, tensor) for tensor in moved]
    outputs = {INFORMATION: information, **learn, **follows}
    graph = finished(op, outputs, [*state, *clock], {INFORMATION: "information", IS_HELD: "held_in_a_row"})
    return replace(graph, state=(*graph.state, *kept))


def _is_good(op: Builder, context: Context, information: ir.Value, level: ir.Value | float) -> ir.Value:
    """Whether the step may learn from the batch: it has information, and lies within reach of the source."""
    # Not a number is not greater: a batch with NaN or infinity is held.
    good = _reaches(op, information, level, float(context.settings["guard_information"]))
    return op.And(good, op.Greater(read(op, context.reach, ()), 0.0)) if context.reach else good


def _checked(
    op: Builder, good: ir.Value, every: int, *, rests: bool
) -> tuple[dict[str, ir.Value], ir.Value | None, list[StateTensor]]:
    """The output `guard.learn`, above 0 if the step may learn, or with rests whether statistics wake; the clock."""
    left, clock = check_clock(op, every, rests=rests)
    if rests:
        return {}, op.LessOrEqual(left, float(every)), [clock]
    return {LEARN: op.Where(good, left, 0.0)}, None, [clock]


def _may_follow(
    op: Builder,
    judged: tuple[ir.Value, ir.Value | float, ir.Value],
    awake: ir.Value | None,
    settings: Mapping[str, Any],
) -> ir.Value:
    """Whether statistics may follow the batch, for its information, the usual one, and whether the batch is good."""
    information, level, good = judged
    least = min(FOLLOWED, float(settings["guard_information"]))
    may = good if least == settings["guard_information"] else _reaches(op, information, level, least)
    return may if awake is None else op.And(may, awake)


def hold(guarding: MethodGraph, settings: Mapping[str, Any], opset: int) -> MethodGraph:
    """What a held batch changes beyond its judgement, in the state of `guarding`: counters, and no state stays NaN.

    `guard.reset` is 1 if the state must reset.  The graph also runs where a periodic reset is due.
    """
    op, state = new_graph(HOLD, opset), {tensor.name: tensor for tensor in guarding.state}
    row, averages = read(op, IS_HELD, ()), state[AVERAGES]
    with op.at(HOLD):
        reset = op.Cast(op.GreaterOrEqual(row, float(settings["guard_patience"])), to=FLOAT)
        if CLOCK in state:
            left = state_input(op.graph, CLOCK, state[CLOCK].initial)
            reset = op.Max(reset, op.Cast(op.LessOrEqual(left, 0.0), to=FLOAT))
        held = counter(op, HELD, lambda before: op.Add(before, op.Min(row, 1.0)))
        resets = counter(op, RESETS, lambda before: op.Add(before, reset))
        now = state_input(op.graph, AVERAGES, averages.initial)
        known = op.Where(op.Equal(op.Sub(now, now), 0.0), now, averages.initial)
        begun = replace(averages, value=now, next=known)
    stats = {f"{HELD}.next": "held", f"{RESETS}.next": "guard_resets"}
    return finished(op, {RESET: reset}, [held, resets, begun], stats)


def _reaches(op: Builder, information: ir.Value, level: ir.Value | float, part: float) -> ir.Value:
    """Whether the information is at least this part of the usual one; a part of 0 admits every number."""
    if not part:
        return op.GreaterOrEqual(information, -1.0)  # rounding makes an information of 0 negative
    least = op.constant(np.array(level * part, np.float32)) if isinstance(level, float) else op.Mul(level, part)
    return op.GreaterOrEqual(information, least)


def _kept(op: Builder, may: ir.Value, tensor: StateTensor) -> StateTensor:
    """The tensor with the next value that the forward gave if statistics `may` follow the batch, else with its own."""
    assert tensor.next is not None
    given, value = (state_input(op.graph, str(name), tensor.initial) for name in (tensor.next.name, tensor.name))
    following = op.Where(may, given, value, name=kept_name(tensor.name))
    op.graph.outputs.append(following)
    return replace(tensor, value=value, next=following)


def kept_by(moves: Mapping[str, str]) -> set[str]:
    """Names of the statistics that follow the guard, from the outputs of its graph and the state that they move."""
    return {tensor for output, tensor in moves.items() if output == kept_name(tensor)}


def kept_name(tensor: str) -> str:
    """Name of the output with the next value of statistics that follow the guard."""
    return f"{tensor}.kept"


def _following(op: Builder, level: ir.Value, information: ir.Value, good: ir.Value) -> StateTensor:
    """The usual information as state: that of the first batch, then an average over learned batches."""
    average = op.Add(level, op.Mul(op.Sub(information, level), NEWEST))
    after = op.Where(good, op.Where(op.Greater(level, 0.0), average, information), level)
    zero = np.zeros((), np.float32)
    return StateTensor(name=str(level.name), role="counter", initial=zero, value=level, next=after)


def _clock(op: Builder, period: int) -> StateTensor:
    """The steps that are left until a periodic reset, at most 0 in the step that is due."""
    first = np.array(period, np.float32)
    left = state_input(op.graph, CLOCK, first)
    return StateTensor(name=CLOCK, role="counter", initial=first, value=left, next=op.Sub(left, 1.0))
