"""Cut the backward graph into stages, so that residuals are freed while the gradient travels towards the input.

An engine holds a run's inputs until the run ends.  With one backward graph every residual is alive when the largest
tensors, those of the first layers, appear; with stages the residuals of the later layers are gone by then.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.partition import drop_unread_inputs
from ttac.passes.plan import nbytes

FEWEST_BYTES = 4 * 2**20
"""Residuals below this are not worth a second run."""


def split_backward(backward: ir.Model, residuals: Sequence[str], batch: int, count: int) -> list[ir.Model]:
    """At most `count` graphs that, run in turn, compute what `backward` does; [backward] where a cut gains nothing.

    A stage's inputs are residuals, state, and values an earlier stage hands on under their own names.
    """
    graph = backward.graph
    kept = [value for value in graph.inputs if value.name in set(residuals)]
    if count < 2 or sum(nbytes(value, batch) for value in kept) < FEWEST_BYTES:
        return [backward]
    order = list(graph)
    cuts = choose_cuts(order, kept, batch, count)
    return [_stage(backward, order, first, last) for first, last in zip([0, *cuts], [*cuts, len(order)], strict=True)]


def choose_cuts(order: Sequence[ir.Node], kept: Sequence[ir.Value], batch: int, count: int) -> list[int]:
    """Positions in `order` where a stage begins: near equal shares of freed residual bytes, few bytes handed on."""
    position = {node: index for index, node in enumerate(order)}
    freed = [0] * (len(order) + 1)
    for value in kept:
        last = max((position[use.node] for use in value.uses()), default=-1)
        freed[last + 1] += nbytes(value, batch)
    crossing = _crossing(order, position, batch)
    total, done = sum(freed), 0
    best: dict[int, tuple[int, int]] = {}
    for index in range(1, len(order)):
        done += freed[index]
        share = min(done * count // max(total, 1), count - 1)
        if share:
            best[share] = min(best.get(share, (crossing[index], index)), (crossing[index], index))
    return sorted(index for _, index in best.values())


def _crossing(order: Sequence[ir.Node], position: dict[ir.Node, int], batch: int) -> list[int]:
    """Per position, the bytes computed before it and read at or after it."""
    change = [0] * (len(order) + 2)
    for index, node in enumerate(order):
        for value in node.outputs:
            last = max((position[use.node] for use in value.uses()), default=index)
            if last > index:
                change[index + 1] += nbytes(value, batch)
                change[last + 1] -= nbytes(value, batch)
    totals, running = [], 0
    for step in change:
        running += step
        totals.append(running)
    return totals


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
