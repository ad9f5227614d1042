"""The features of a classifier less the mean of the stream's features (Murphy et al., arXiv:2510.05635)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.errors import UsageError
from ttac.passes.adapt.adapt_norms import batch_size
from ttac.passes.differentiate.heads import scores_of
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.norms import calibration
from ttac.passes.step_graphs.context import Subject
from ttac.passes.step_graphs.linear_head import class_head, flat_features, last_linear, subtract_features
from ttac.settings import is_guarded

ROOM = "refine"
LONGEST = 1.5
"""Largest length of the mean of a batch, in lengths of the mean of the stream; shifts of the data change it by less."""
MEAN, COUNT = "features.mean", "features.count"


def centred(subject: Subject) -> list[StateTensor]:
    """Let the last linear layer read x - (m - o) in place of its features x, in place.

    m is the mean of the features of the stream, this batch included, and o the origin: zero, or the source's mean.

    Raises UnsupportedError unless a linear layer predicts one class of each sample, UsageError for `origin=source`
    without calibration data.
    """
    class_head(subject, "`neo` moves the features of a classifier")
    graph = subject.model.graph
    op = Builder(graph, ROOM, subject.model.opset_imports[""])
    scores = scores_of(op, graph.outputs[0])
    layer = last_linear(scores, "centre")
    x = layer.inputs[0]
    assert x is not None
    origin = _origin(subject, x)
    size = batch_size(op, graph)
    with op.at("centre", before=layer):
        mean = op.ReduceMean(flat_features(op, layer), [0], keepdims=0)
        state = _followed(op, mean, size, subject.settings)
        following = state[0].next
        assert following is not None
        shift = op.Sub(following, origin) if origin is not None else following
    with op.at("centre"):
        subtract_features(op, subject, layer, scores, shift)
    return state


def _origin(subject: Subject, x: ir.Value) -> np.ndarray | None:
    """The mean of the features of the calibration samples [features]; None for zero."""
    samples = subject.samples
    if subject.settings["origin"] == "zero":
        return None
    if samples is None:
        raise UsageError(
            "the mean of the source is unknown without source samples",
            where="`--set origin=source`",
            hint="give unlabelled source samples, `--calibration PATH`, or take `--set origin=zero`",
        )
    return calibration.statistics(subject.model, samples, [x], subject.batch)[str(x.name)][0]


def _followed(op: Builder, mean: ir.Value, size: ir.Value, settings: Mapping[str, Any]) -> list[StateTensor]:
    """The mean of the stream with its next value, and without `newest` the number of samples.

    With the guard, no batch counts with a mean longer than `LONGEST` times the mean of the stream.
    """
    newest = float(settings["newest"])
    initial = np.zeros([int(size) for size in dims(mean)], np.float32)
    running = state_input(op.graph, MEAN, initial)
    if is_guarded(settings):
        known, length = op.ReduceL2(running, keepdims=0), op.ReduceL2(mean, keepdims=0)
        limit = op.Where(op.Greater(known, 0.0), op.Mul(known, LONGEST), length)
        mean = op.Mul(mean, op.Div(limit, op.Max(limit, length)))
    counter: list[StateTensor] = []
    weight: ir.Value | float = newest
    if not newest:
        zero = np.zeros((), np.float32)
        count = state_input(op.graph, COUNT, zero)
        total = op.Add(count, size, name=f"{COUNT}.next")
        weight = op.Div(size, total)
        counter = [StateTensor(name=COUNT, role="counter", initial=zero, value=count, next=total)]
    following = op.Add(running, op.Mul(op.Sub(mean, running), weight), name=f"{MEAN}.next")
    return [StateTensor(name=MEAN, role="statistic", initial=initial, value=running, next=following), *counter]
