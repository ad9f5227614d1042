"""Fit a step into a memory budget: fewer bytes for the residuals that are alive at the highest moments.

Two exact measures come first: the backward recomputes the scores of attention, and masks become bits.  Then one
residual after the other becomes int8, the largest saving at the highest moment first, until no moment exceeds the goal.
The bytes alive at each moment follow from the joint graph, in the order that forward and backward will have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np
import onnx_ir as ir

from ttac.passes.plan.codecs import CODECS
from ttac.passes.plan.codecs.codec import LEAST_ENCODED_BYTES
from ttac.passes.plan.decisions import Decide, Decision, Plan, divides_by, keep_as, nbytes
from ttac.passes.plan.liveness import bytes_over_time
from ttac.passes.plan.needs_gradient import backward_nodes, needs_gradient
from ttac.passes.plan.plan import plan_activations
from ttac.passes.plan.schedule import early_order


def plan_within(
    joint: ir.Graph, backward: Sequence[ir.Node], free: Iterable[ir.Value], batch: int, goal: int
) -> tuple[Plan, bool]:
    """Return the fastest plan with a planned peak of at most `goal` bytes, and whether a smaller plan exists.

    If no plan meets the goal, the returned plan encodes every residual that may lower the peak.
    """
    free = list(free)
    values = {str(v.name): v for node in joint for v in node.outputs}
    gradient_nodes = needs_gradient(backward)
    order = [
        *early_order(node for node in joint if node not in gradient_nodes),
        *(node for node in joint if node in gradient_nodes),
    ]
    without_plan = bytes_over_time(order, batch)
    for tight in (False, True):
        plan = plan_activations(joint, backward, free, batch, tight=tight)
        kept = [values[name] for name in plan.residuals]
        again = backward_nodes(gradient_nodes, kept, {id(value) for value in free}) - gradient_nodes
        spans = Spans(order, gradient_nodes, again)
        alive = _bytes_with_plan(plan, values, spans, without_plan)
        if alive.max(initial=0) <= goal:
            return plan, True
    floats = _encodable_floats(plan, values)
    chosen = choose_smaller(spans, floats, alive, batch, goal)
    smaller = plan_activations(joint, backward, free, batch, _decide_from(chosen, batch), tight=True)
    return smaller, any(str(value.name) not in chosen and spans.of(value) for value in floats)


def _encodable_floats(plan: Plan, values: Mapping[str, ir.Value]) -> list[ir.Value]:
    """Return the dense float residuals that are worth encoding, without outputs of the forward and divisors."""
    rows = [row for row in plan.decisions if row.how == "dense" and row.bytes >= LEAST_ENCODED_BYTES]
    residuals = [values[row.value] for row in rows]
    return [
        value
        for value in residuals
        if value.dtype == ir.DataType.FLOAT
        and not value.is_graph_output()
        and not any(divides_by(*use) for use in value.uses())
    ]


def _bytes_with_plan(plan: Plan, values: Mapping[str, ir.Value], spans: Spans, without_plan: np.ndarray) -> np.ndarray:
    """Return the bytes alive over time with `plan`; `without_plan` holds the joint graph's, without recomputation."""
    alive = without_plan.copy()
    kept = set(plan.residuals)
    for name, value in values.items():
        in_joint, in_halves = spans.within_graph(value), spans.of(value)
        if in_joint and name not in kept:
            alive[slice(*in_joint)] -= nbytes(value, plan.batch)
        elif in_halves and not in_joint and name in kept:
            alive[slice(*in_halves)] += nbytes(value, plan.batch)
    return alive


class Spans:
    """Idle time of a value: from the last reader in the forward to the first reader in the `backward` part of `order`.

    A forward node that the backward runs `again` does not end the span: the value stays for the readers of that node.
    """

    def __init__(
        self, order: Iterable[ir.Node], backward: Set[ir.Node], again: Set[ir.Node] = frozenset[ir.Node]()
    ) -> None:
        self._backward, self._again = backward, again
        self._position = {node: index for index, node in enumerate(order)}

    def of(self, value: ir.Value) -> tuple[int, int] | None:
        """Return the first position and the position after the last one; None if the value is never idle."""
        return self._span(value, self._needed_for(value))

    def within_graph(self, value: ir.Value) -> tuple[int, int] | None:
        """Return the same span in the joint graph, where no node runs again."""
        return self._span(value, {use.node for use in value.uses() if use.node in self._backward})

    def _span(self, value: ir.Value, readers: Set[ir.Node]) -> tuple[int, int] | None:
        producer = value.producer()
        if producer is None or producer in self._backward:
            return None
        before = [self._position[use.node] for use in value.uses() if use.node not in self._backward]
        first = max([self._position[producer], *before]) + 1
        last = min((self._position[node] for node in readers), default=0)
        return (first, last) if first < last else None

    def _needed_for(self, value: ir.Value) -> set[ir.Node]:
        """Return the nodes of the backward that read `value` or a value recomputed from `value`."""
        reached: set[ir.Node] = set()
        pending = [value]
        while pending:
            readers = {use.node for use in pending.pop().uses()} - reached
            reached |= {node for node in readers if node in self._backward or node in self._again}
            pending += [output for node in readers if node in self._again for output in node.outputs]
        return {node for node in reached if node in self._backward}


def choose_smaller(spans: Spans, floats: Sequence[ir.Value], alive: np.ndarray, batch: int, goal: int) -> set[str]:
    """Return the names of those `floats` that must be int8 for a peak of `goal` bytes.

    Args:
        spans: idle times.
        floats: residuals that may become int8.
        alive: bytes alive over time, int64 [nodes].
        batch: samples per step.
        goal: bytes.
    """
    alive = alive.copy()
    savings = {str(v.name): (span, nbytes(v, batch) - _int8_bytes(v, batch)) for v in floats if (span := spans.of(v))}
    chosen: set[str] = set()
    while alive.max(initial=0) > goal:
        worst = int(alive.argmax())
        there = {name: gain for name, ((a, b), gain) in savings.items() if name not in chosen and a <= worst < b}
        if not there:
            # Nothing at the highest moment can shrink.  Smaller residuals elsewhere still leave the arena more room.
            return set(savings)
        best = max(there, key=lambda name: (there[name], name))
        alive[slice(*savings[best][0])] -= there[best]
        chosen.add(best)
    return chosen


def _int8_bytes(value: ir.Value, batch: int) -> int:
    return int(batch * CODECS["int8"].bytes(value, 1.0))


def _decide_from(names: Set[str], batch: int) -> Decide:
    """Return a chooser: int8 for `names`, bits for large masks, dense for the rest."""

    def decide(value: ir.Value, nodes: Set[ir.Node]) -> Decision:
        if value.dtype == ir.DataType.BOOL and nbytes(value, batch) >= LEAST_ENCODED_BYTES // 4:
            return keep_as(value, "bits", batch)
        if str(value.name) in names:
            return keep_as(value, "int8", batch, "the budget asks for less at the peak")
        return keep_as(value, "dense", batch)

    return decide
