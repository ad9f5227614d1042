"""Cut the backward graph into stages, so that residuals are freed while the gradient travels towards the input.

An engine holds the inputs of a run until the run ends.  With one backward graph, every residual is alive when the
largest tensors appear, those of the first layers.  With stages, the residuals of the later layers are free by then.
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
"""Bytes of residuals below which the backward stays one graph: fewer bytes are not worth a second run."""
PLACES = 5
"""Candidate places per cut: the residuals are divided into as many near equal parts, with one candidate in each."""


def split_backward(backward: ir.Model, residuals: Sequence[str], batch: int, count: int) -> list[ir.Model]:
    """Return at most `count` graphs that together compute the outputs of `backward`; [backward] if a cut gains nothing.

    The inputs of a stage are residuals, state, and values that earlier stages output under the same names.  The cuts
    give the lowest peak.  `backward` has standard operators only, because composites would hide their working memory.
    """
    graph = backward.graph
    kept = [value for value in graph.inputs if value.name in set(residuals)]
    if count < 2 or sum(nbytes(value, batch) for value in kept) < FEWEST_BYTES:
        return [backward]
    order = list(graph)
    cuts = choose_cuts(order, kept, batch, count)
    return [_stage(backward, order, first, last) for first, last in zip([0, *cuts], [*cuts, len(order)], strict=True)]


def choose_cuts(order: Sequence[ir.Node], kept: Sequence[ir.Value], batch: int, count: int) -> list[int]:
    """Return the positions in `order` where a stage begins, at most count - 1; the highest stage takes fewest bytes.

    A stage always holds the residuals that this stage or a later one reads, and the values that cross the stage.
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


def _places(freed: np.ndarray, crossing: np.ndarray, count: int) -> list[int]:
    """Return one position for each of `count` near equal parts of the freed bytes: where the fewest bytes cross."""
    part_of = np.minimum(np.cumsum(freed[:-1]) * count // max(int(freed.sum()), 1), count - 1)
    part_of[0] = 0
    parts = [np.flatnonzero(part_of == part) for part in np.unique(part_of) if part]
    return [int(part[crossing[part].argmin()]) for part in parts]


def _lowest(cost: Mapping[tuple[int, int], int], end: int, count: int) -> list[int]:
    """Return the cuts into at most `count` stages with the lowest highest stage; of equals, the lowest on average."""
    reached: dict[int, tuple[int, int, tuple[int, ...]]] = {0: (0, 0, ())}
    complete = []
    for _ in range(count):
        longer: dict[int, tuple[int, int, tuple[int, ...]]] = {}
        for (first, last), held in cost.items():
            if first in reached:
                highest, total, cuts = reached[first]
                option = (max(highest, held), total + held * (last - first), (*cuts, first))
                longer[last] = min(longer.get(last, option), option)
        reached = longer
        if end in reached:
            complete.append(reached[end])
    return list(min(complete)[2][1:])


def _stage(backward: ir.Model, order: Sequence[ir.Node], first: int, last: int) -> ir.Model:
    graph = backward.graph
    inside = set(order[first:last])
    values = [value for node in order[first:last] for value in node.outputs]
    outputs = [v for v in values if v.is_graph_output() or any(use.node not in inside for use in v.uses())]
    read = [value for node in order[first:last] for value in node.inputs if value is not None]
    taken = dict.fromkeys(value for value in read if value.producer() is not None and value.producer() not in inside)
    stage = ir.convenience.extract(graph, inputs=[*taken, *graph.inputs], outputs=outputs)
    drop_unread_inputs(stage)
    stage.name = backward.graph.name
    return ir.Model(stage, ir_version=backward.ir_version, producer_name=backward.producer_name)
