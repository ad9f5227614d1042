"""The guard of a compile: its defaults, its graph, and the usual information of the calibration data."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ttac.check_samples import check_graphs, rests
from ttac.compile_state import CompileState
from ttac.passes.differentiate.heads import scores_of
from ttac.passes.differentiate.losses import entropies, mean
from ttac.passes.differentiate.reverse_walk import nodes_between
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import Executable
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor
from ttac.passes.lower.lower import lower
from ttac.passes.step_graphs.context import Context, MethodGraph
from ttac.passes.step_graphs.guard import FOLLOW, GUARD, WINDOW, follow, guard, is_on, marginal

BATCH_NORMS, OTHER_NORMS = 0.03, 0.01
"""Radius with batch norms and without, chosen on the tuning half of `benchmarks/guard_study.py`."""
ENTROPY = "entropy"
SAMPLES = 512
"""Most calibration samples that measure the usual information."""


def settled_guard(settings: Mapping[str, Any], kinds: frozenset[str]) -> Mapping[str, Any]:
    """The settings with the guard's radius for norms of these kinds, if none is set."""
    if not is_on(settings):
        return settings
    radius = BATCH_NORMS if "batch" in kinds else OTHER_NORMS
    given = settings.get("guard_radius")
    return settings if given is None else {**settings, "guard_radius": given or radius}


def guard_graph(state: CompileState, context: Context) -> dict[str, MethodGraph]:
    """The graphs `guard` and `guard-follow`, if the guard is on and the loss reports the entropy of the predictions."""
    assert state.joint is not None and state.joint.loss is not None
    entropy = state.joint.loss.stats.get(ENTROPY)
    if not is_on(context.settings) or entropy is None:
        return {}
    scores, moved = state.joint.loss.scores or state.joint.logits, followed(state)
    checks = check_graphs(state)
    judged = guard(
        context,
        str(entropy.name),
        state.usual_information,
        dims(scores),
        follows=bool(moved),
        checks=bool(checks),
    )
    return {GUARD: judged, **({FOLLOW: follow(moved, context.opset)} if moved else {}), **checks}


def guard_without_loss(state: CompileState) -> dict[str, MethodGraph]:
    """The same graphs for a method without a loss, if its predictions depend on state that they move."""
    joint, head, moved = state.joint, state.head, followed(state)
    if not moved or head is None:
        return {}
    assert joint is not None
    context = Context(
        parameters=(),
        gradients=(),
        logits=str(joint.logits.name),
        head=head,
        settings=state.options.settings,
        opset=joint.model.opset_imports[""],
        logits_are_probabilities=head.values == "probabilities" and list(head.shape) == dims(joint.logits),
    )
    checks = check_graphs(state)
    judged = guard(
        context,
        "",
        state.usual_information,
        dims(joint.logits),
        follows=True,
        checks=bool(checks),
        rests=rests(state),
    )
    return {GUARD: judged, FOLLOW: follow(moved, context.opset), **checks}


def followed(state: CompileState) -> list[StateTensor]:
    """The state that the forward moves, if the guard is on and the predictions depend on that state."""
    tracked = [tensor for tensor in state.adaptation.tracked if tensor.next is not None]
    output = state.joint.logits if state.joint else state.model.graph.outputs[0]
    inputs = [tensor.value for tensor in tracked]
    depends = is_on(state.options.settings) and nodes_between(state.model.graph, inputs, output, detached=True)
    return tracked if depends else []


def usual_information(state: CompileState) -> float:
    """The mean information of batches of the calibration data, as the adapted source model predicts; 0 if unknown."""
    samples, head, options = state.samples.known, state.head, state.options
    if not is_on(options.settings) or samples is None or head is None or not (options.method.loss or followed(state)):
        return 0.0
    copy = state.model.clone()
    op = Builder(copy.graph, GUARD, copy.opset_imports[""])
    with op.at(GUARD):
        scores = scores_of(op, copy.graph.outputs[0], head)
        copy.graph.outputs[:] = [marginal(op, scores, head), mean(op, entropies(op, scores, head), ENTROPY)]
    names = [str(value.name) for value in copy.graph.outputs]
    initial = {tensor.name: tensor.initial for tensor in state.adaptation.state}
    size = min(options.batch, len(samples))
    batches = [samples.part(i, i + size) for i in range(0, min(len(samples), SAMPLES) - size + 1, size)]
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), {GUARD: lower(copy, options.target)})
        run = Executable(Path(folder) / f"{GUARD}.onnx")
        rows = [[run({**initial, **batch})[name] for name in names] for batch in batches]
    answers = head.outputs if head.binary else 1
    return _averaged([(row[0], float(row[1])) for row in rows], min(1.0, size / WINDOW), answers)


def _averaged(batches: list[tuple[np.ndarray, float]], weight: float, answers: int) -> float:
    """The mean of H(average p) - average H over batches, the averages moving as in the graph `guard`."""
    p, h = batches[0]
    values = []
    for following, entropy in batches:
        p, h = p + weight * (following - p), h + weight * (entropy - h)
        values.append(float(-(p * np.log(p + 1e-12)).sum() / answers - h))
    return max(0.0, float(np.mean(values[len(values) // 2 if weight < 1 else 0 :])))
