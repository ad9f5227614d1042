"""The information of a batch, H(mean p) - mean H(p), in few nodes: every step computes it behind the forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.heads import scores_of
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import BATCH, dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.context import Context, read
from ttac.passes.step_graphs.probabilities import probabilities

AVERAGES = "guard.averages"
"""State: the means over about `WINDOW` samples."""
WINDOW = 16
"""Samples that the moving averages of a small batch cover; a batch of this size is judged alone."""
TINY = 1e-12
"""Least probability in a logarithm: 0 ln 0 is 0."""
LEAST_FACTOR = 3.0
"""Least factor of a given entropy: the exponential of the factor must be above the entropy over the factor."""


@dataclass(frozen=True, eq=False)
class _Means:
    """Means over the batch in one row: the probabilities, and a rest that gives the mean entropy.

    The sum of row * ln max(row, floor) is the sum of p ln p plus the mean entropy times the number of answers.

    Attributes:
        row: [1, values].
        start: the values before the first batch.
        floor: the least probability, and for the rest the exponential of its factor, which is above any value of it.
        samples: a value with the samples on its first axis.
    """

    row: ir.Value
    start: np.ndarray
    floor: np.ndarray
    samples: ir.Value


def batch_information(
    op: Builder, context: Context, entropy: str, usual: float, shape: Sequence[int | str] | None
) -> tuple[ir.Value, StateTensor]:
    """The information of the batch, a scalar in nats, and the averages over about `WINDOW` samples as state.

    Args:
        entropy: name of the forward's output with the mean entropy; empty computes it from the scores.
        usual: the information to begin with.
        shape: of the value `context.logits`, where the scores are joined with coordinates of boxes.
    """
    undecided = max(0.0, math.log(context.classes) - usual)
    given = read(op, context.logits, shape or context.head.shape)
    if entropy:
        means = _with_entropy(op, context, given, entropy, undecided)
    else:
        means = _of_scores(op, context, given, undecided)
    before = state_input(op.graph, AVERAGES, means.start)
    after = op.MatMul(_weights(op, means.samples, context.batch), op.Concat(before, means.row, axis=0))
    logarithms = op.Log(op.Max(after, means.floor))
    total = op.Gemm(after, logarithms, alpha=-1.0 / _answers(context), transB=1)
    return op.Squeeze(total, [0, 1]), StateTensor(
        name=AVERAGES, role="counter", initial=means.start, value=before, next=after
    )


def _answers(context: Context) -> int:
    """Number of independent answers of a position."""
    return context.head.outputs if context.head.binary else 1


def _with_entropy(op: Builder, context: Context, given: ir.Value, entropy: str, undecided: float) -> _Means:
    """The means with the `entropy` that the loss reports; a Softmax of the loss serves here too."""
    head = context.head
    mean, joined = read(op, entropy, ()), dims(given) != list(head.shape)
    scores = op.Slice(given, [head.first], [head.first + head.outputs], [head.axis]) if joined else given
    p, axis = probabilities(op, scores, head, are_probabilities=context.logits_are_probabilities)
    answers, size = _answers(context), dims(p)[axis]
    factor = max(LEAST_FACTOR, math.log(answers * math.log(context.classes)) + 2)
    rest = op.Mul(mean, np.array([[answers / factor]], np.float32))
    return _Means(
        row=op.Concat(_mean_row(op, p, axis), rest, axis=1),
        start=_row([1 / context.classes] * int(size), [undecided * answers / factor]),
        floor=_row([TINY] * int(size), [math.exp(factor)]),
        samples=p,
    )


def _of_scores(op: Builder, context: Context, given: ir.Value, undecided: float) -> _Means:
    """The means with those of p ln p, from scores, or from probabilities where the output has these."""
    head, plain = context.head, context.logits_are_probabilities
    scores = given if plain else scores_of(op, given, head)
    p, axis = probabilities(op, scores, head, are_probabilities=plain)
    logarithms = op.Log(op.Max(p, TINY)) if plain or head.binary else op.LogSoftmax(scores, axis=axis)
    products, size = op.Mul(p, logarithms), int(dims(p)[axis])
    return _Means(
        row=op.Concat(_mean_row(op, p, axis), _mean_row(op, products, axis), axis=1),
        start=_row([1 / context.classes] * size, [-undecided * _answers(context) / size] * size),
        floor=_row([TINY] * size, [math.exp(-1)] * size),
        samples=p,
    )


def _mean_row(op: Builder, value: ir.Value, axis: int) -> ir.Value:
    """The means over all axes but `axis`, [1, size], from the last axis to the first."""
    for other in reversed([i for i in range(1, len(dims(value))) if i != axis]):
        value = op.ReduceMean(value, [other], keepdims=0)
    return op.ReduceMean(value, [0], keepdims=1)


def _row(first: Sequence[float], second: Sequence[float]) -> np.ndarray:
    return np.array([[*first, *second]], np.float32)


def _weights(op: Builder, samples: ir.Value, batch: int) -> ir.Value:
    """The weights of the averages and of the batch, [1, 2], from a table by the number of samples."""
    count = op.Shape(samples, start=0, end=1)
    most = max(batch, WINDOW)
    if dims(samples)[0] != BATCH:
        count = op.Min(count, np.array([most], np.int64))
    new = np.minimum(np.arange(most + 1) / WINDOW, 1.0)
    return op.Gather(np.stack([1 - new, new], 1).astype(np.float32), count, axis=0)
