"""A trained matrix before the classifier, and the loss on both predictions (Chen et al., arXiv:2509.23183)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.heads import Head, scores_of
from ttac.passes.differentiate.losses import Loss, entropies, mean, surprises
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs import optimizers
from ttac.passes.step_graphs.context import Context, MethodGraph, Subject
from ttac.passes.step_graphs.linear_head import class_head, classified, flat_features, last_linear

ROOM = "refine"
MATRIX, SCORES = "predictor.matrix", "predictor.scores"


def with_predictor(subject: Subject) -> list[StateTensor]:
    """Add the prediction `predictor.scores` for the features behind the matrix `predictor.matrix`, in place.

    The matrix [features, features] begins as the identity.  Raises UnsupportedError unless a linear layer predicts one
    class of each sample.
    """
    class_head(subject, "`zerosiam` compares two predictions of a class")
    graph = subject.model.graph
    op = Builder(graph, ROOM, subject.model.opset_imports[""])
    with op.at("predictor"):
        scores = scores_of(op, graph.outputs[0])
        layer = last_linear(scores, "turn")
        features = flat_features(op, layer)
        initial = np.eye(int(dims(features)[1]), dtype=np.float32)
        matrix = state_input(graph, MATRIX, initial)
        turned = op.Gemm(features, matrix, transB=1)
        classified(op, layer, scores, turned).name = SCORES
    return [StateTensor(name=MATRIX, role="optimizer", initial=initial, value=matrix)]


def certain_and_alike(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """mean_i H(q_i) + KL(q_i, p_i) + KL(p_i, q_i), with q of the turned features, and p plain without a gradient.

    The sum is CE(q, p) + CE(p, q) - H(p).
    """
    plain = entropies(op, scores, head)
    plain.name = "entropy.plain"
    turned = next(value for node in op.graph for value in node.outputs if value.name == SCORES)
    fixed = op.Detached(scores)
    both = op.Add(surprises(op, turned, fixed, head), surprises(op, fixed, turned, head))
    scalar = mean(op, op.Sub(both, op.Detached(plain)), "certain.and.alike")
    return Loss(scalar=scalar, stats={"entropy": mean(op, plain, "entropy")}, head=head)


def update(context: Context) -> MethodGraph:
    """One step of the optimizer, with a learning rate for the matrix."""
    return optimizers.update(context, rates={MATRIX: float(context.settings["predictor_lr"])})
