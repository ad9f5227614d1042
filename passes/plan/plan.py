"""The plan of the residuals: a minimum cut, then a codec for each value of the cut.

Cheap nodes with one large input may run again in the backward.  Where memory is tight, products of few terms may run
again too, such as the scores of attention.

A residual with an error must not change the branch of a step function.  The plan keeps every mask that the backward
would compute from such a residual, as bits.  Small statistics that the gradients read are kept for the same reason.

A step's graphs read the state as of the beginning of the step.  The runtime replaces moved state directly after the
forward.  So no node that reads moved state runs again in the backward: the plan keeps the node's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

import onnx_ir as ir

from ttac.passes.plan.codecs import CODECS
from ttac.passes.plan.decisions import (
    SMALL_BYTES,
    STATISTIC_BYTES,
    Decide,
    Decision,
    KeepRatios,
    Plan,
    keep_as,
    nbytes,
    recomputed,
)
from ttac.passes.plan.minimum_cut import CutProblem, minimum_cut
from ttac.passes.plan.needs_gradient import backward_nodes, needs_gradient, read_by_gradients


def plan_activations(
    joint: ir.Graph,
    backward: Sequence[ir.Node],
    free: Iterable[ir.Value],
    batch: int,
    decide: Decide | None = None,
    keep_ratios: KeepRatios | None = None,
    *,
    tight: bool = False,
) -> Plan:
    """Return the plan of `joint`, whose nodes `backward` come from autodiff.

    Args:
        joint: forward, loss and gradients in one graph.
        backward: the nodes that autodiff appended.
        free: values that both sides read at no cost: user inputs, state, constants.  An input of `joint` outside `free`
            is state that the forward moves.
        batch: samples per step that the bytes are counted for.
        decide: chooses the codec of a value; without `decide`, all residuals are dense.
        keep_ratios: keep ratios for codecs that drop elements.
        tight: run products of few terms, and their consequences, twice: a few per cent of time for less memory.
    """
    gradient_nodes = needs_gradient(backward)
    free_ids = {id(value) for value in free}
    moved = [value for value in joint.inputs if id(value) not in free_ids]
    problem = CutProblem(
        joint=joint,
        gradient_nodes=gradient_nodes,
        free=free_ids,
        moved={id(value) for value in moved},
        batch=batch,
        tight=tight,
    )
    read = read_by_gradients(gradient_nodes, backward)
    decisions = _decide_all(problem, read, decide or (lambda value, _: keep_as(value, "dense", batch)))
    kept = {row.value for row in decisions}
    again = [value for value in read if value.name not in kept and id(value) not in problem.free]
    decisions += [recomputed(value, batch) for value in again if nbytes(value, batch) > SMALL_BYTES]
    return Plan(batch, tuple(decisions), keep_ratios, tuple(str(value.name) for value in moved))


def _decide_all(problem: CutProblem, read: Sequence[ir.Value], decide: Decide) -> list[Decision]:
    """Return one decision for each value of the minimum cut.

    Residuals with an error lead to a second cut, which pins the masks and the small statistics among the values `read`.
    """
    cut = minimum_cut(problem)
    nodes = backward_nodes(problem.gradient_nodes, cut, problem.free)
    decisions = [decide(value, nodes) for value in cut]
    lossy = {id(v) for v, row in zip(cut, decisions, strict=True) if not CODECS[row.how].is_exact}
    if not lossy:
        return decisions
    is_mask = {id(value) for value in read if value.dtype == ir.DataType.BOOL}
    small = [value for value in read if id(value) in is_mask or nbytes(value, problem.batch) <= STATISTIC_BYTES]
    pinned = frozenset(id(value) for value in small if _follows_from(value, lossy, nodes))
    cut = minimum_cut(problem, pinned)
    nodes = backward_nodes(problem.gradient_nodes, cut, problem.free)
    masks = pinned & is_mask
    return [keep_as(v, "bits", problem.batch) if id(v) in masks else decide(v, nodes) for v in cut]


def _follows_from(value: ir.Value, sources: Set[int], nodes: Set[ir.Node]) -> bool:
    """Whether `nodes` compute `value` from a value with an id in `sources`."""
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        if id(current) in sources:
            return True
        producer = current.producer()
        if producer is not None and producer in nodes and producer not in seen:
            seen.add(producer)
            pending += [v for v in producer.inputs if v is not None]
    return False
