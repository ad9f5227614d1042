"""The check set: calibration samples in the bundle, which show whether the source's predictions survive adaptation.

Each step of the number `guard_check` predicts one batch of the set in place of learning.  A round is one pass over the
set.  Its loss is the mean of 1 - p/m, p being the probability of the source's class, and m that of the likeliest class:
0 while the classes stay, however certain they are.  If the loss is above its limit, the trained tensors move halfway
back to the source, the radius becomes half as large, and all other state but that of norms becomes the compiled state.
Each good round lets the radius grow, up to `guard_radius`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.heads import Head, scores_of
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import BATCH, dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.context import MethodGraph, counter, finished, new_graph, read
from ttac.passes.step_graphs.probabilities import probabilities

SAMPLES, CHECK, RETURN = "guard-samples", "guard-check", "guard-return"
"""The graphs: a batch of the set, its judgement, and the way back of the trained tensors."""
LEFT, FAILED, MEAN = "guard.left", "guard.failed", "guard.loss"
"""State: the steps that are left until the next check, at most 0 in a step that checks; outputs: 1 if the round failed,
and the mean loss of its batches."""
TURN, LOST, RETURNS, STRIKES = "guard.turn", "guard.lost", "guard.returns", "guard.strikes"
REACH = "guard.reach"
"""State that the radius is multiplied with."""
KEPT = (RETURNS, LEFT, STRIKES, REACH)
"""State that no reset of the guard clears."""
BACK, GROWTH, LEAST_REACH = 0.5, 2**0.125, 2.0**-6
"""Part of the drift and of the radius that a failed round leaves; its growth in a good round; its least part."""
MOST_STRIKES = 10.0
"""Statistics rest for 2 ** strikes intervals of the check; more failed rounds make the rest no longer."""
FLOAT = int(ir.DataType.FLOAT)


@dataclass(frozen=True)
class Stored:
    """Samples of one input, as the bundle holds them: an array, and where it holds bytes, `scale` and `offset`.

    A value is byte * scale + offset.  `axis` is the axis with the samples, None for an array that all samples share.
    """

    array: np.ndarray
    axis: int | None
    scale: float = 0.0
    offset: float = 0.0

    @classmethod
    def of(cls, array: np.ndarray, axis: int | None) -> Stored:
        """The array; images and volumes of floating numbers as bytes between their least and largest value."""
        if array.dtype != np.float32 or array.ndim < 4 or axis is None:
            return cls(array, axis)
        low, high = float(array.min()), float(array.max())
        scale = (high - low) / 255 or 1.0
        return cls(np.rint((array - np.float32(low)) / np.float32(scale)).astype(np.uint8), axis, scale, low)

    @property
    def values(self) -> np.ndarray:
        """The samples as the graph gives them."""
        if not self.scale:
            return self.array
        return self.array.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)


@dataclass(frozen=True, kw_only=True)
class CheckSet:
    """Calibration samples, and the predictions of the compiled state on them.

    Attributes:
        inputs: name of an input -> its samples.
        classes: the class at each position, as an index along the axis of `probabilities`; uint8 or int32.
        batch: samples that are predicted together; it divides their number.
    """

    inputs: Mapping[str, Stored]
    classes: np.ndarray
    batch: int

    @property
    def turns(self) -> int:
        """Checks of a round."""
        return len(self.classes) // self.batch


def sample(name: str) -> str:
    """Name of the value with the samples for the input `name`."""
    return f"guard.sample.{name}"


def sample_graph(check: CheckSet, opset: int) -> MethodGraph:
    """One batch of the set: a value for each input of the model, chosen by the state `guard.turn`."""
    op = new_graph(SAMPLES, opset)
    turn = state_input(op.graph, TURN, np.zeros((), np.float32))
    with op.at(SAMPLES):
        given = {sample(name): _part(op, stored, turn, check.batch) for name, stored in check.inputs.items()}
    return finished(op, given)


def _part(op: Builder, stored: Stored, turn: ir.Value, batch: int) -> ir.Value:
    if stored.axis is None:
        return op.Identity(stored.array)
    chosen = _rows(op, stored.array, turn, batch, stored.axis)
    if not stored.scale:
        return op.Identity(chosen)
    return op.Add(op.Mul(op.Cast(chosen, to=FLOAT), stored.scale), stored.offset)


def _rows(op: Builder, array: np.ndarray, turn: ir.Value, batch: int, axis: int = 0) -> ir.Value:
    """The rows of the array that belong to a turn."""
    start = op.Reshape(op.Cast(op.Mul(turn, float(batch)), to=int(ir.DataType.INT64)), [1])
    rows = op.Slice(array, start, op.Add(start, batch), [axis])
    rows.shape = ir.Shape([batch if place == axis else size for place, size in enumerate(array.shape)])
    return rows


def likeliest(probability: np.ndarray, head: Head) -> np.ndarray:
    """The class at each position, as an index along the axis of `probabilities`; uint8 if that suffices, or int32."""
    axis = len(head.shape) if head.axis is None else head.axis
    if head.binary:
        answers = probability.shape[axis] // 2
        yes = np.take(probability, range(answers, 2 * answers), axis) > 0.5
        place = np.arange(answers).reshape([-1 if i == axis else 1 for i in range(probability.ndim)])
        classes = np.where(yes, place + answers, place)
    else:
        classes = np.expand_dims(probability.argmax(axis), axis)
    return classes.astype(np.uint8 if probability.shape[axis] <= 256 else np.int32)


def check_graph(
    check: CheckSet, logits: ir.Value, head: Head, opset: int, *, limit: float, every: int, rests: bool
) -> MethodGraph:
    """The judgement of one batch: `guard.failed` is 1 if the loss of the round is above `limit`.

    The losses of a round only add up, so a round fails as soon as their sum is too large.

    Args:
        logits: the value of the forward with the predictions, in the form of `head`.
        every: the interval of the check, in steps.
        rests: whether statistics rest after a failed round: each failed round doubles the rest, a good one halves it.
    """
    op = new_graph(CHECK, opset)
    turn, lost = (state_input(op.graph, name, np.zeros((), np.float32)) for name in (TURN, LOST))
    with op.at(CHECK):
        loss = _loss(op, check, logits, head, turn)
        total = op.Add(lost, loss)
        # Not a number is not at most the limit: such a round fails.
        failed = op.Not(op.LessOrEqual(total, limit * check.turns))
        ended = op.Or(failed, op.GreaterOrEqual(turn, float(check.turns - 1)))
        mean = op.Div(total, op.Add(turn, 1.0))
        failure = op.Cast(failed, to=FLOAT)
        state = [
            _state(TURN, turn, op.Where(ended, 0.0, op.Add(turn, 1.0))),
            _state(LOST, lost, op.Where(ended, 0.0, total)),
            counter(op, RETURNS, lambda before: op.Add(before, failure)),
            *(_resting(op, failed, ended, every) if rests else _reaching(op, failed, ended, every)),
        ]
    stats = {MEAN: "check_loss", f"{RETURNS}.next": "guard_returns"}
    return finished(op, {FAILED: failure, MEAN: mean}, state, stats)


def _loss(op: Builder, check: CheckSet, logits: ir.Value, head: Head, turn: ir.Value) -> ir.Value:
    """The mean of 1 - p/m over the batch of this turn."""
    given = read(op, str(logits.name), [BATCH, *dims(logits)[1:]])
    joined = list(head.shape) != dims(logits)
    plain = head.values == "probabilities" and not joined
    p, axis = probabilities(op, scores_of(op, given, head), head, are_probabilities=plain)
    classes = op.Cast(_rows(op, check.classes, turn, check.batch), to=int(ir.DataType.INT64))
    own = op.GatherElements(p, classes, axis=axis)
    most = op.Max(own, op.Sub(1.0, own)) if head.binary else op.ReduceMax(p, [axis], keepdims=1)
    return op.ReduceMean(op.Sub(1.0, op.Div(own, most)), keepdims=0)


def _state(name: str, value: ir.Value, following: ir.Value) -> StateTensor:
    return StateTensor(name=name, role="counter", initial=np.zeros((), np.float32), value=value, next=following)


def _resting(op: Builder, failed: ir.Value, ended: ir.Value, every: int) -> list[StateTensor]:
    """The number of recent failed rounds, and the clock: after a failed round, statistics rest above the interval."""
    before = state_input(op.graph, STRIKES, np.zeros((), np.float32))
    fewer = op.Where(ended, op.Max(op.Sub(before, 1.0), 0.0), before)
    strikes = op.Where(failed, op.Min(op.Add(before, 1.0), MOST_STRIKES), fewer)
    length = op.Mul(op.Pow(op.constant(np.array(2.0, np.float32)), strikes), float(every))
    left = op.Where(failed, op.Add(length, float(every)), float(every))
    return [_state(STRIKES, before, strikes), _clock(op, every, left)]


def _clock(op: Builder, every: int, following: ir.Value) -> StateTensor:
    """The steps that are left until the next check, as this check sets them."""
    first = np.array(every - 1.0, np.float32)
    value = ir.val(LEFT, dtype=ir.DataType.FLOAT, shape=ir.Shape([]))
    return StateTensor(name=LEFT, role="counter", initial=first, value=value, next=following)


def reach_input(graph: ir.Graph) -> ir.Value:
    """The graph input with the part of the radius that holds now."""
    known = {str(value.name): value for value in graph.inputs}
    return known[REACH] if REACH in known else state_input(graph, REACH, np.ones((), np.float32))


def _reaching(op: Builder, failed: ir.Value, ended: ir.Value, every: int) -> list[StateTensor]:
    """The part of the radius that holds after this check, and the clock, which is negative in a step that checks."""
    before = reach_input(op.graph)
    grown = op.Where(ended, op.Min(op.Mul(before, GROWTH), 1.0), before)
    after = op.Where(failed, op.Max(op.Mul(before, BACK), LEAST_REACH), grown)
    left = op.Identity(np.array(-every, np.float32))
    return [replace(_state(REACH, before, after), initial=np.ones((), np.float32)), _clock(op, every, left)]


def check_clock(op: Builder, every: int, *, rests: bool) -> tuple[ir.Value, StateTensor]:
    """The clock of the check in this step, and as state: a step of the number `every` begins with a check.

    A check without rests sets the clock to -`every`: above 0 it says that the step may learn.  A check with rests sets
    it to `every`, and after a failed round to more: then statistics rest while the clock is above `every`.
    """
    first = np.array(every - 1.0, np.float32)
    left = state_input(op.graph, LEFT, first)
    following = op.Sub(left if rests else op.Abs(left), 1.0)
    return left, StateTensor(name=LEFT, role="counter", initial=first, value=left, next=following)


def return_graph(parameters: Sequence[StateTensor], opset: int) -> MethodGraph:
    """The trained tensors at `BACK` of their distance from the source, on the line to the source."""
    op, moved = new_graph(RETURN, opset), []
    with op.at(RETURN):
        for parameter in parameters:
            value, source = state_input(op.graph, parameter.name, parameter.initial), parameter.initial
            following = op.Add(op.Mul(value, BACK), (source * np.float32(1 - BACK)).astype(np.float32))
            moved.append(replace(parameter, value=value, next=following))
    return finished(op, {}, moved)
