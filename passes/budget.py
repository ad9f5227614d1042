"""Fit a step into a memory budget: which residuals cross to the backward in fewer bytes, so that the peak is low.

Masks as bits come first, which is exact; then, one after the other, the residual that takes most off the highest moment
becomes int8, until no moment is above the goal.  How much is alive when is read off the joint graph, in its order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

import numpy as np
import onnx_ir as ir

from ttac.passes.codecs import CODECS
from ttac.passes.liveness import bytes_over_time
from ttac.passes.plan import WORTH_ENCODING, Decide, Kept, Plan, keep_as, nbytes, plan_activations


def plan_within(
    joint: ir.Graph, backward: Sequence[ir.Node], free: Iterable[ir.Value], batch: int, goal: int
) -> tuple[Plan, bool]:
    """The plan that costs least time with a peak of at most `goal` bytes, as far as that can be planned.

    Returns it with whether there is anything left to make smaller.
    """
    free = list(free)
    plan = plan_activations(joint, backward, free, batch)
    values = {str(v.name): v for node in joint for v in node.outputs}
    spans = Spans(joint, set(backward))
    alive = bytes_over_time(joint, batch)
    kept = {row.value for row in plan.kept if row.how != "recompute"}
    for name, value in values.items():
        if name not in kept and (span := spans.of(value)):
            alive[slice(*span)] -= nbytes(value, batch)  # computed again, so it need not wait
    if alive.max(initial=0) <= goal:
        return plan, True
    rows = [row for row in plan.kept if row.how == "dense" and row.bytes >= WORTH_ENCODING]
    floats = [
        v for v in (values[row.value] for row in rows) if v.dtype == ir.DataType.FLOAT and not v.is_graph_output()
    ]
    chosen = choose_smaller(spans, floats, alive, batch, goal)
    again = plan_activations(joint, backward, free, batch, _as_chosen(chosen, batch))
    return again, any(str(value.name) not in chosen and spans.of(value) for value in floats)


class Spans:
    """When a value of the joint graph waits: from its last reader in the forward to its first in the backward."""

    def __init__(self, joint: ir.Graph, backward: Set[ir.Node]) -> None:
        self._backward = backward
        self._position = {node: index for index, node in enumerate(joint)}

    def of(self, value: ir.Value) -> tuple[int, int] | None:
        """First and behind the last node, as positions; None if it does not wait."""
        maker = value.producer()
        if maker is None or maker in self._backward:
            return None
        after = [self._position[use.node] for use in value.uses() if use.node in self._backward]
        before = [self._position[use.node] for use in value.uses() if use.node not in self._backward]
        first = max([self._position[maker], *before]) + 1
        return (first, min(after)) if after and first < min(after) else None


def choose_smaller(spans: Spans, floats: Sequence[ir.Value], alive: np.ndarray, batch: int, goal: int) -> set[str]:
    """Names of those of `floats` that must be int8 for a peak of `goal` bytes, given the bytes `alive` over time."""
    alive = alive.copy()
    waits = {str(v.name): (span, nbytes(v, batch) - _int8_bytes(v, batch)) for v in floats if (span := spans.of(v))}
    chosen: set[str] = set()
    while alive.max(initial=0) > goal:
        worst = int(alive.argmax())
        there = {name: gain for name, ((a, b), gain) in waits.items() if name not in chosen and a <= worst < b}
        if not there:
            # Nothing at the highest moment can be smaller; what can be elsewhere still leaves the arena more room.
            return set(waits)
        best = max(there, key=lambda name: (there[name], name))
        alive[slice(*waits[best][0])] -= there[best]
        chosen.add(best)
    return chosen


def _int8_bytes(value: ir.Value, batch: int) -> int:
    return int(batch * CODECS["int8"].bytes(value, 1.0))


def _as_chosen(names: Set[str], batch: int) -> Decide:
    def decide(value: ir.Value, half: Set[ir.Node]) -> Kept:
        if value.dtype == ir.DataType.BOOL and nbytes(value, batch) >= WORTH_ENCODING // 4:
            return keep_as(value, "bits", batch)
        if str(value.name) in names:
            return keep_as(value, "int8", batch, "the budget asks for less at the peak")
        return keep_as(value, "dense", batch)

    return decide
