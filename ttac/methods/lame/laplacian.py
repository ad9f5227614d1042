"""Predictions of a batch made to agree where features are alike: no parameter changes, no state survives a step.

Boudiaf et al., "Parameter-free online test-time adaptation", CVPR 2022 (arXiv:2201.05718): with the model's
probabilities q_i and affinities w_ij of the features, assignments z minimise sum_i KL(z_i | q_i) - sum_ij w_ij z_i.z_j.
Its bound optimisation repeats z_i <- softmax(ln q_i + sum_j w_ij z_j); the graph holds every repetition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from ttac.passes.differentiate.heads import scores_of
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor
from ttac.passes.step_graphs.context import Subject
from ttac.passes.step_graphs.linear_head import class_head, flat_features, last_linear, replace_output, unit_rows

ROOM = "refine"
FLOOR = 1e-10
"""Added to a probability before its logarithm, as in the official code: 0 costs 23 nats, which neighbours outweigh."""
CLOSEST = 1e-6
"""Least squared width.  Squared distances of normalised features reach 4: float32 cannot tell less from 0."""


def assign(subject: Subject) -> tuple[StateTensor, ...]:
    """Put the assignments of a batch in the place of the model's predictions, in the same form: in place.

    Raises UnsupportedError unless the output predicts one class of each sample, by a linear layer.
    """
    head = class_head(subject, "`lame` assigns classes to the samples of a batch")
    model, settings = subject.model, subject.settings
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    with op.at("lame"):
        scores = scores_of(op, model.graph.outputs[0])
        weights = op.Mul(affinity(op, unit_features(op, scores), settings), float(settings["weight"]))
        assignments = assigned(op, scores, weights, int(settings["iterations"]))
        probabilities = head.values == "probabilities"
        predictions = op.Softmax(assignments, axis=1) if probabilities else op.LogSoftmax(assignments, axis=1)
    replace_output(subject, predictions)
    return ()


def unit_features(op: Builder, scores: ir.Value) -> ir.Value:
    """The features that the last linear layer reads, [N, features], each sample's of length 1."""
    return unit_rows(op, flat_features(op, last_linear(scores, "compare samples by")))


def affinity(op: Builder, features: ir.Value, settings: Mapping[str, Any]) -> ir.Value:
    """w [N, N] of normalised features [N, F].

    "rbf": exp(-d^2/(2 s^2)), s the mean distance to the k-th nearest, a sample itself being the first.  "knn": 1 for
    the k nearest others, and for all samples as near as the last of these.  "linear": the cosine.
    """
    cosine = op.MatMul(features, op.Transpose(features, perm=[1, 0]))
    if settings["affinity"] == "linear":
        return cosine
    itself = op.EyeLike(cosine)
    apart = op.Max(op.Sub(2.0, op.Mul(cosine, 2.0)), 0.0)
    squared = op.Mul(apart, op.Sub(1.0, itself))
    count, knn = op.Shape(squared, start=0, end=1), int(settings["neighbours"])
    if settings["affinity"] == "rbf":
        scale = op.ReduceMean(op.Sqrt(_nearest(op, squared, op.Min(count, [knn]))), keepdims=0)
        width = op.Mul(op.Mul(scale, scale), 2.0)
        return op.Exp(op.Neg(op.Div(squared, op.Max(width, CLOSEST))))
    last = _nearest(op, squared, op.Min(count, [knn + 1]))
    near = op.Sub(op.Cast(op.LessOrEqual(squared, last), to=int(ir.DataType.FLOAT)), itself)
    return op.Mul(op.Add(near, op.Transpose(near, perm=[1, 0])), 0.5) if settings["symmetric"] else near


def _nearest(op: Builder, squared: ir.Value, count: ir.Value) -> ir.Value:
    """The `count`-th smallest of each row [N, 1]."""
    values, _ = op.TopK(squared, count, axis=1, largest=0)
    return op.ReduceMax(values, [1], keepdims=1)


def assigned(op: Builder, scores: ir.Value, weights: ir.Value, iterations: int) -> ir.Value:
    """ln z + constant [N, C] after so many iterations from z = q."""
    q = op.Softmax(scores, axis=1)
    unary = op.Log(op.Add(q, FLOOR))
    assignments = unary
    for _ in range(iterations):
        assignments = op.Add(unary, op.MatMul(weights, op.Softmax(assignments, axis=1)))
    return assignments
