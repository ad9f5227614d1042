"""The error of the predictions, estimated without labels, as an option of the methods that keep the classifier.

Lee et al., "AETTA: Label-free accuracy estimation for test-time adaptation", CVPR 2024 (arXiv:2404.01351), with the
authors' code.  The classifier predicts each sample again from features with dropout.  The estimate is the rate of
changed classes, divided by the cube of the normalised entropy of the mean prediction: a model that collapsed agrees
with itself.  The forward draws; the graph `estimate` keeps the moving average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.heads import scores_of
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.operators.random_numbers import Numbers, seeded
from ttac.passes.step_graphs.context import MethodGraph, Subject, finished, new_graph, read
from ttac.passes.step_graphs.linear_head import class_head, classified, flat_features, last_linear

ESTIMATE = "estimate"
CHANGED, ENTROPY = "estimate.changed", "estimate.entropy"
"""Outputs of the forward: the rate of changed classes, and the entropy of the mean prediction in nats."""
SEED, ERROR = "estimate.seed", "estimate.error"
UNKNOWN = -1.0
"""State of the estimate before the first batch."""
NEWEST = 0.4
"""Weight of the newest batch in the average, as in the official code."""
RATES = ((10, 0.4), (200, 0.3))
"""Most classes, and the rate of dropout up to that number; the official rates for CIFAR-10 and CIFAR-100."""
MANY = 0.2
"""Rate of dropout for more classes; the official rate for ImageNet."""
FLOOR = 1e-6
"""Added to a probability in its logarithm, as in the official code."""
FLOAT = int(ir.DataType.FLOAT)


def is_on(settings: Mapping[str, Any]) -> bool:
    """Whether the settings turn the estimate on."""
    return bool(settings.get(ESTIMATE))


def observe(subject: Subject) -> StateTensor:
    """Make the model predict each sample again from features with dropout, in place; the state of the random numbers.

    The new outputs are scalars: the rate of changed classes over all samples and draws, and the entropy of the mean
    prediction.

    Raises UnsupportedError unless a linear layer predicts one class of each sample.
    """
    head = class_head(subject, "`estimate` counts changed classes")
    graph, draws = subject.model.graph, int(subject.settings[ESTIMATE])
    op = Builder(graph, ESTIMATE, subject.model.opset_imports[""])
    scores = scores_of(op, graph.outputs[0])
    layer = last_linear(scores, "drop", hint="leave out `--set estimate`")
    initial = seeded(0)
    with op.at(ESTIMATE):
        features = flat_features(op, layer)
        size, width = dims(features)
        assert isinstance(width, int)
        numbers = Numbers(op, state_input(graph, SEED, initial))
        count = draws * subject.batch * width
        rate = next((rate for most, rate in RATES if head.classes <= most), MANY)
        kept = op.Cast(op.Greater(numbers.many(0, count), rate), to=FLOAT)
        kept = op.Mul(op.Reshape(kept, [draws, subject.batch, width]), 1 / (1 - rate))
        samples = op.Shape(features, start=0, end=1)
        dropped = op.Mul(op.Slice(kept, [0], samples, [1]), op.Unsqueeze(features, [0]))
        rows = op.Reshape(dropped, [-1, width])
        rows.shape = ir.Shape([draws * size if isinstance(size, int) else f"{draws}*{size}", width])
        again = classified(op, layer, scores, rows)
        before = op.ArgMax(scores, axis=1, keepdims=0)
        after = op.Reshape(op.ArgMax(again, axis=1, keepdims=0), [draws, -1])
        same = op.ReduceMean(op.Cast(op.Equal(after, op.Unsqueeze(before, [0])), to=FLOAT), keepdims=0)
        mean = op.ReduceMean(op.Softmax(again, axis=1), [0], keepdims=0)
        entropy = op.Neg(op.ReduceSum(op.Mul(mean, op.Log(op.Add(mean, FLOOR))), keepdims=0), name=ENTROPY)
        graph.outputs.extend([op.Sub(1.0, same, name=CHANGED), entropy])
        following = op.Identity(numbers.following(count), name=f"{SEED}.next")
    return StateTensor(name=SEED, role="counter", initial=initial, value=numbers.state, next=following)


def estimate(opset: int, classes: int) -> MethodGraph:
    """The moving average of changed / (entropy / ln C)^3, at most 1 - 1/C; it starts at the rate of changed classes."""
    op = new_graph(ESTIMATE, opset)
    changed, entropy = read(op, CHANGED, ()), read(op, ENTROPY, ())
    initial = np.array(UNKNOWN, np.float32)
    before = state_input(op.graph, ERROR, initial)
    with op.at(ESTIMATE):
        certainty = op.Pow(op.Div(entropy, math.log(classes)), 3.0)
        newest = op.Clip(op.Div(changed, op.Max(certainty, FLOOR)), 0.0, 1 - 1 / classes)
        known = op.Where(op.Less(before, 0.0), changed, before)
        following = op.Add(op.Mul(known, 1 - NEWEST), op.Mul(newest, NEWEST))
    state = StateTensor(name=ERROR, role="counter", initial=initial, value=before, next=following)
    return finished(op, {}, [state], {f"{ERROR}.next": "estimated_error"})
