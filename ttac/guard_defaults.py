"""The guard of a compile: its defaults, its graph, and the usual information of the calibration data."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ttac.compile_state import CompileState
from ttac.passes.differentiate.heads import scores_of
from ttac.passes.differentiate.losses import entropies, mean
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import Executable
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.shapes import dims
from ttac.passes.lower.lower import lower
from ttac.passes.step_graphs.context import Context, MethodGraph
from ttac.passes.step_graphs.guard import GUARD, WINDOW, guard, is_on, marginal

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
    return {**settings, "guard_radius": settings["guard_radius"] or radius}


def guard_graph(state: CompileState, context: Context) -> dict[str, MethodGraph]:
    """The graph `guard`, if it is on and the loss reports the entropy of the predictions."""
    assert state.joint is not None and state.joint.loss is not None
    entropy = state.joint.loss.stats.get(ENTROPY)
    if not is_on(context.settings) or entropy is None:
        return {}
    scores = state.joint.loss.scores or state.joint.logits
    return {GUARD: guard(context, str(entropy.name), state.usual_information, dims(scores))}


def usual_information(state: CompileState) -> float:
    """The mean information of batches of the calibration data, as the adapted source model predicts; 0 if unknown."""
    samples, head, options = state.samples.known, state.head, state.options
    if not is_on(options.settings) or samples is None or head is None:
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
