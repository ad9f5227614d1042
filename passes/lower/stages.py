"""Cut the backward graph into stages, so that residuals are freed while the gradient travels towards the input.

An engine holds a run's inputs until the run ends.  With one backward graph every residual is alive when the largest
tensors, those of the first layers, appear; with stages the residuals of the later layers are gone by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.keys import LIKELY_BYTES
from ttac.passes.partition.partition import drop_unread_inputs
from ttac.passes.plan.decisions import nbytes
from ttac.passes.plan.liveness import alive_from, bytes_of, carried, lifetimes

FEWEST_BYTES = 4 * 2**20
"""Residuals below this are not worth a second run."""
PLACES = 5
"""Places per cut that are weighed: the cheapest of each of as many equal shares of the residuals."""


def split_backward(backward: ir.Model, residuals: Sequence[str], batch: int, count: int) -> list[ir.Model]:
    """At most `count` graphs that, run in turn, compute what `backward` does; [backward] where a cut gains nothing.

    A stage's inputs are residuals, state, and values an earlier stage hands on under their own names.  The cuts are
    those of the lowest peak, on a graph of standard operators: composites would hide what they need meanwhile.
    """
    graph = backward.graph
    kept = [value for value in graph.inputs if value.name in set(residuals)]
    if count < 2 or sum(nbytes(value, batch) for value in kept) < FEWEST_BYTES:
        return [backward]
    order = list(graph)
    cuts = choose_cuts(order, kept, batch, count)
    return [_stage(backward, order, first, last) for first, last in zip([0, *cuts], [*cuts, len(order)], strict=True)]


def choose_cuts(order: Sequence[ir.Node], kept: Sequence[ir.Value], batch: int, count: int) -> list[int]:
    """Positions in `order` where a stage begins, at most count - 1: those whose highest stage takes fewest bytes.

    A stage holds, all the time, the residuals that it or a later one reads and what earlier ones hand on.
    """
    position = {node: index for index, node in enumerate(order)}
    freed = np.zeros(len(order) + 1, np.int64)
    for value in kept:
        freed[max((position[use.node] for use in value.uses()), default=-1) + 1] += bytes_of(value, batch, LIKELY_BYTES)
    lives = lifetimes(order, batch, LIKELY_BYTES)
    crossing = carried(lives, len(order))
    held = freed.sum() - np.cumsum(freed[:-1]) + crossing
    starts = [0, *_places(freed, crossing, count * PLACES)]
    cost = {}
    for start in starts:
        alive = np.maximum.accumulate(alive_from(lives, start, len(order)))
        for end in [*starts, len(order)]:
            if end > start:
                cost[start, end] = int(held[start] + alive[end - start - 1])
    return _lowest(cost, len(order), count)


def _places(freed: np.ndarray, crossing: np.ndarray, shares: int) -> list[int]:
    """Where a cut hands on the least, one position for each of `shares` near equal parts of the freed bytes."""
    share = np.minimum(np.cumsum(freed[:-1]) * shares // max(int(freed.sum()), 1), shares - 1)
    share[0] = 0
    parts = [np.flatnonzero(share == part) for part in np.unique(share) if part]
    return [int(part[crossing[part].argmin()]) for part in parts]


def _lowest(cost: Mapping[tuple[int, int], int], end: int, count: int) -> list[int]:
    """The cuts whose highest stage is lowest, `count` stages at most; among equals, those lowest on average."""
    reached: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}
    found = []
    for _ in range(count):
        longer: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        for (first, last), held in cost.items():
            if first in reached:
                highest, total, cuts = reached[first]
                option = (max(highest, held), total + held * (last - first), (*cuts, first))
                longer[last] = min(longer.get(last, option), option)
        reached = longer
        if end in reached:
            found.append(reached[end])
    return list(min(found)[2][1:])


def _stage(backward: ir.Model, order: Sequence[ir.Node], first: int, last: int) -> ir.Model:
    graph = backward.graph
    inside = set(order[first:last])
    made = [value for node in order[first:last] for value in node.outputs]
    handed = [v for v in made if v.is_graph_output() or any(use.node not in inside for use in v.uses())]
    read = [value for node in order[first:last] for value in node.inputs if value is not None]
    taken = dict.fromkeys(value for value in read if value.producer() is not None and value.producer() not in inside)
    stage = ir.convenience.extract(graph, inputs=[*taken, *graph.inputs], outputs=handed)
    drop_unread_inputs(stage)
    stage.name = backward.graph.name
    return ir.Model(stage, ir_version=backward.ir_version, producer_name=backward.producer_name)
