"""The guard of a compile: its defaults, its graph, and the usual information of the calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.check_samples import check_graphs, rests
from ttac.compile_state import CompileState
from ttac.compiled_model import computed
from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.losses import entropies, mean
from ttac.passes.differentiate.reverse_walk import nodes_between
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor
from ttac.passes.step_graphs.answer import ANSWER, answers_apart
from ttac.passes.step_graphs.batch_information import WINDOW
from ttac.passes.step_graphs.context import Context, MethodGraph
from ttac.passes.step_graphs.guard import GUARD, HOLD, MARK, guard, hold, marginal
from ttac.passes.step_graphs.return_to_source import IN_REACH
from ttac.settings import is_guarded

BATCH_NORMS, OTHER_NORMS = 0.03, 0.01
"""Radius with batch norms and without, chosen on the tuning half of `benchmarks/guard_study.py`."""
ENTROPY = "entropy"
SAMPLES = 512
"""Most calibration samples that measure the usual information."""


def settled_guard(settings: Mapping[str, Any], kinds: frozenset[str]) -> Mapping[str, Any]:
    """The settings with the guard's radius for norms of these kinds, if none is set."""
    if not is_guarded(settings):
        return settings
    radius = BATCH_NORMS if "batch" in kinds else OTHER_NORMS
    given = settings.get("guard_radius")
    return settings if given is None else {**settings, "guard_radius": given or radius}


def guard_graph(state: CompileState, context: Context) -> dict[str, MethodGraph]:
    """The graphs of the guard for a method with a loss, if the guard is on.

    The loss reports the mean entropy of the predictions; if not, the guard computes it from the model's output.
    """
    assert state.joint is not None and state.joint.loss is not None
    loss, entropy = state.joint.loss, state.joint.loss.stats.get(ENTROPY)
    if not is_guarded(context.settings):
        return {}
    if answers_apart(state.options.method.program):
        return _guard_of_output(state, ANSWER)
    if entropy is None:
        return _guard_of_output(state)
    return _graphs(state, context, str(entropy.name), loss.scores or state.joint.logits)


def guard_without_loss(state: CompileState) -> dict[str, MethodGraph]:
    """The same graphs for a method without a loss, if its predictions depend on state that they move."""
    return _guard_of_output(state) if followed(state) and state.head is not None else {}


def _guard_of_output(state: CompileState, answer: str = "") -> dict[str, MethodGraph]:
    """The graphs of a guard that reads the model's output alone, or the `answer` of the method in its place."""
    joint, head = state.joint, state.head
    assert joint is not None and head is not None
    context = Context(
        parameters=(),
        gradients=(),
        logits=answer or str(joint.logits.name),
        head=head,
        settings=state.options.settings,
        opset=joint.model.opset_imports[""],
        batch=state.options.batch,
        logits_are_probabilities=head.values == "probabilities" and list(head.shape) == dims(joint.logits),
        reach=IN_REACH if state.options.method.running and state.adaptation.tracked else "",
    )
    return _graphs(state, context, "", joint.logits)


def _graphs(state: CompileState, context: Context, entropy: str, scores: ir.Value) -> dict[str, MethodGraph]:
    """The graph `guard`, that of held batches, and those of the check set."""
    # The forward of a step that answers apart gives statistics of other samples than the user's.
    moved = [] if answers_apart(state.options.method.program) else followed(state)
    checks = check_graphs(state)
    marked = any(word.get(MARK) for word in state.options.method.program)
    judged = guard(
        context,
        entropy,
        state.usual_information,
        dims(scores),
        moved=moved,
        marked=marked,
        checks=bool(checks),
        rests=rests(state),
    )
    return {GUARD: judged, HOLD: hold(judged, context.settings, context.opset), **checks}


def followed(state: CompileState) -> list[StateTensor]:
    """The state that the forward moves, if the guard is on and the predictions depend on that state."""
    tracked = [tensor for tensor in state.adaptation.tracked if tensor.next is not None]
    output = state.joint.logits if state.joint else state.model.graph.outputs[0]
    inputs = [tensor.value for tensor in tracked]
    depends = is_guarded(state.options.settings) and nodes_between(state.model.graph, inputs, output, detached=True)
    return tracked if depends else []


def usual_information(state: CompileState) -> float:
    """The mean information of batches of the calibration data, as the adapted source model predicts; 0 if unknown."""
    samples, head, options = state.samples.known, state.head, state.options
    judged = is_guarded(options.settings) and (options.method.loss or followed(state))
    if not judged or samples is None or head is None:
        return 0.0
    size = min(options.batch, len(samples))
    batches = [samples.part(i, i + size) for i in range(0, min(len(samples), SAMPLES) - size + 1, size)]

    def judge(op: Builder, scores: ir.Value, head: Head) -> list[ir.Value]:
        return [marginal(op, scores, head), mean(op, entropies(op, scores, head), ENTROPY)]

    rows = computed(state, judge, batches, GUARD)
    answers = head.outputs if head.binary else 1
    return _averaged([(row[0], float(row[1])) for row in rows], min(1.0, size / WINDOW), answers)


def _averaged(batches: list[tuple[np.ndarray, float]], weight: float, answers: int) -> float:
    """The mean of H(average p) - average H over batches, the averages moving as in the guard."""
    p, h = batches[0]
    values = []
    for following, entropy in batches:
        p, h = p + weight * (following - p), h + weight * (entropy - h)
        values.append(float(-(p * np.log(p + 1e-12)).sum() / answers - h))
    return max(0.0, float(np.mean(values[len(values) // 2 if weight < 1 else 0 :])))
