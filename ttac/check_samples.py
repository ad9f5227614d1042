"""The check set of a compile: how many calibration samples it holds, their predictions, and its graphs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ttac.compile_state import CompileState
from ttac.compiled_model import computed
from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.reverse_walk import nodes_between
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.sample_set import SampleSet
from ttac.passes.graph.state import StateTensor
from ttac.passes.step_graphs.check_set import (
    CHECK,
    RETURN,
    SAMPLES,
    CheckSet,
    Stored,
    check_graph,
    likeliest,
    return_graph,
    sample_graph,
)
from ttac.passes.step_graphs.context import MethodGraph
from ttac.passes.step_graphs.probabilities import probabilities
from ttac.settings import is_guarded

INTERVAL, LIMIT = "guard_check", "guard_loss"
"""Options: steps between two checks, and the loss above which a round fails, beyond one sample."""
MOST_SAMPLES, LEAST_SAMPLES = 256, 16
"""Samples of a check set: the most show an error of 1 %; with fewer than the least, single samples decide."""
MOST_BYTES = 8 << 20
"""Most bytes of a check set: 55 images of 224 x 224 pixels in three channels."""
MOST_ELEMENTS = 1 << 20
"""Trained elements from which on a failed round resets them: their way back would need as much memory once more."""


def check_set(state: CompileState, say: Callable[[str], None]) -> CheckSet | None:
    """The check set, None without the guard, calibration data, a reading of the output, or state to judge.

    A bundle with open sizes has none: its graphs fit no samples of one size.
    """
    samples, options = state.samples.known, state.options
    if reason := _hindrance(state):
        if INTERVAL in options.stated and options.settings[INTERVAL]:
            say(f"`{INTERVAL}` has no effect: {reason}")
        return None
    assert samples is not None
    stored, classes = _stored(samples.first(1)), _predicted(state, samples.first(1), 1)
    each = sum(one.array.nbytes for one in stored.values()) + classes.nbytes
    count = min(MOST_SAMPLES, len(samples), MOST_BYTES // each)
    batch = min(options.batch, count)
    count -= count % batch if batch else 0
    if count < LEAST_SAMPLES:
        given = f"{len(samples)} are given, and {MOST_BYTES // each} fit into {MOST_BYTES >> 20} MiB"
        say(f"no check set: {LEAST_SAMPLES} samples in whole batches are needed, {given}")
        return None
    stored = _stored(_spread(samples, count))
    values = SampleSet({name: one.values for name, one in stored.items()}, samples.axes)
    return CheckSet(inputs=stored, classes=_predicted(state, values, batch), batch=batch)


def _hindrance(state: CompileState) -> str:
    """The reason why a bundle has no check set, with the way out; empty if it may have one."""
    settings, options = state.options.settings, state.options
    reasons = {
        "the guard is off": not is_guarded(settings) or not settings.get(INTERVAL),
        "the check needs calibration samples, `--calibration PATH`": state.samples.known is None,
        "the check needs a reading of the output, `--head`": state.head is None,
        "the check needs a fixed size of the samples, `--shape`": options.max_shape is not None,
    }
    reason = next((reason for reason, applies in reasons.items() if applies), "")
    return reason or ("" if judged(state) else "predictions depend on no state that the check judges")


def _spread(samples: SampleSet, count: int) -> SampleSet:
    """As many samples, at equal distances over the whole set."""
    chosen = np.linspace(0, len(samples) - 1, count).round().astype(np.int64)
    arrays = {
        name: array if (axis := samples.axes[name]) is None else np.take(array, chosen, axis)
        for name, array in samples.arrays.items()
    }
    return SampleSet(arrays, samples.axes)


def _stored(samples: SampleSet) -> dict[str, Stored]:
    return {name: Stored.of(array, samples.axes[name]) for name, array in samples.arrays.items()}


def _predicted(state: CompileState, samples: SampleSet, batch: int) -> np.ndarray:
    """The classes that the adapted model with its compiled state predicts, in batches."""
    head = state.head
    assert head is not None

    def judge(op: Builder, scores: ir.Value, head: Head) -> list[ir.Value]:
        return [probabilities(op, scores, head)[0]]

    found = computed(state, judge, samples.batches(batch), CHECK)
    return np.concatenate([likeliest(probability, head) for (probability,) in found])


def of_norms(state: CompileState) -> list[StateTensor]:
    """The statistics of norms that predictions may depend on, and their counters: they follow the stream's domain."""
    names = (*(f"{site.name}." for site in state.sites), "statistics.")
    return [tensor for tensor in state.adaptation.tracked if tensor.name.startswith(names)]


def moved_apart(state: CompileState) -> list[StateTensor]:
    """The statistics of norms that graphs of the method move, from samples that it keeps; most methods have none.

    Predictions depend on them, and a failed round drops them with the samples.
    """
    return of_norms(state) if state.options.method.running else []


def judged(state: CompileState) -> bool:
    """Whether predictions depend on state that the check judges: all but the statistics of norms."""
    norms, graph = {tensor.name for tensor in of_norms(state)}, state.model.graph
    others = [tensor.value for tensor in state.adaptation.tracked if tensor.name not in norms]
    return bool(state.adaptation.parameters or nodes_between(graph, others, graph.outputs[0], detached=True))


def rests(state: CompileState) -> bool:
    """Whether statistics rest after a failed round: nothing else turns back in a method that trains nothing."""
    return state.check is not None and not state.adaptation.parameters


def check_graphs(state: CompileState) -> dict[str, MethodGraph]:
    """The graphs of the check, none without a check set."""
    check, joint, head, settings = state.check, state.joint, state.head, state.options.settings
    if check is None:
        return {}
    assert joint is not None and head is not None
    opset, trained = joint.model.opset_imports[""], joint.parameters
    judge = check_graph(
        check,
        joint.logits,
        head,
        opset,
        limit=float(settings[LIMIT]) + 1 / len(check.classes),
        every=int(settings[INTERVAL]),
        rests=rests(state),
    )
    graphs = {SAMPLES: sample_graph(check, opset), CHECK: judge}
    if trained and sum(tensor.initial.size for tensor in trained) < MOST_ELEMENTS:
        graphs[RETURN] = return_graph(trained, opset)
    return graphs
