"""Fit a step into a memory budget: which residuals cross to the backward in fewer bytes, so that the peak is low.

Attention's scores are computed again and masks become bits first, which is exact; then, one after the other, what takes
most off the highest moment becomes int8, until no moment is above the goal.  How much is alive when is read off the
joint graph, in the order that its halves will have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np
import onnx_ir as ir

from ttac.passes.plan.codecs import CODECS
from ttac.passes.plan.liveness import bytes_over_time
from ttac.passes.plan.plan import (
    WORTH_ENCODING,
    Decide,
    Kept,
    Plan,
    backward_half,
    downstream_of_gradient,
    keep_as,
    nbytes,
    plan_activations,
)
from ttac.passes.plan.schedule import early_order


def plan_within(
    joint: ir.Graph, backward: Sequence[ir.Node], free: Iterable[ir.Value], batch: int, goal: int
) -> tuple[Plan, bool]:
    """The plan that costs least time with a peak of at most `goal` bytes, as far as that can be planned.

    Returns it with whether there is anything left to make smaller.
    """
    free = list(free)
    values = {str(v.name): v for node in joint for v in node.outputs}
    late = downstream_of_gradient(backward)
    order = [*early_order(node for node in joint if node not in late), *(node for node in joint if node in late)]
    everything = bytes_over_time(order, batch)
    for tight in (False, True):
        plan = plan_activations(joint, backward, free, batch, tight=tight)
        kept = [values[name] for name in plan.residuals]
        spans = Spans(order, late, backward_half(late, kept, {id(value) for value in free}) - late)
        alive = _with_kept(plan, values, spans, everything)
        if alive.max(initial=0) <= goal:
            return plan, True
    rows = [row for row in plan.kept if row.how == "dense" and row.bytes >= WORTH_ENCODING]
    floats = [
        v for v in (values[row.value] for row in rows) if v.dtype == ir.DataType.FLOAT and not v.is_graph_output()
    ]
    chosen = choose_smaller(spans, floats, alive, batch, goal)
    again = plan_activations(joint, backward, free, batch, _as_chosen(chosen, batch), tight=True)
    return again, any(str(value.name) not in chosen and spans.of(value) for value in floats)


def _with_kept(plan: Plan, values: Mapping[str, ir.Value], spans: Spans, everything: np.ndarray) -> np.ndarray:
    """Bytes alive over time as planned; in `everything`, those of the joint graph, nothing is computed again."""
    alive = everything.copy()
    kept = set(plan.residuals)
    for name, value in values.items():
        counted, waits = spans.within_graph(value), spans.of(value)
        if counted and name not in kept:
            alive[slice(*counted)] -= nbytes(value, plan.batch)
        elif waits and not counted and name in kept:
            alive[slice(*waits)] += nbytes(value, plan.batch)
    return alive


class Spans:
    """When a value waits: from its last reader in the forward to its first in the `backward` part of `order`.

    Nodes of the forward that the backward runs `again` do not end that: it waits for what they are needed for.
    """

    def __init__(
        self, order: Iterable[ir.Node], backward: Set[ir.Node], again: Set[ir.Node] = frozenset[ir.Node]()
    ) -> None:
        self._backward, self._again = backward, again
        self._position = {node: index for index, node in enumerate(order)}

    def of(self, value: ir.Value) -> tuple[int, int] | None:
        """First and behind the last node, as positions; None if it does not wait."""
        return self._span(value, self._needed_for(value))

    def within_graph(self, value: ir.Value) -> tuple[int, int] | None:
        """The same as long as nothing runs again."""
        return self._span(value, {use.node for use in value.uses() if use.node in self._backward})

    def _span(self, value: ir.Value, readers: Set[ir.Node]) -> tuple[int, int] | None:
        maker = value.producer()
        if maker is None or maker in self._backward:
            return None
        before = [self._position[use.node] for use in value.uses() if use.node not in self._backward]
        first = max([self._position[maker], *before]) + 1
        last = min((self._position[node] for node in readers), default=0)
        return (first, last) if first < last else None

    def _needed_for(self, value: ir.Value) -> set[ir.Node]:
        """The nodes of the backward that read `value` or what is computed from it again."""
        found: set[ir.Node] = set()
        pending = [value]
        while pending:
            readers = {use.node for use in pending.pop().uses()} - found
            found |= {node for node in readers if node in self._backward or node in self._again}
            pending += [output for node in readers if node in self._again for output in node.outputs]
        return {node for node in found if node in self._backward}


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
