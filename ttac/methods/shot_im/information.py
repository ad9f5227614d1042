"""The negative mutual information of samples and predicted classes (Liang et al., arXiv:2002.08546, eq. 3)."""

from __future__ import annotations

import onnx_ir as ir

from ttac import methods
from ttac.errors import UnsupportedError
from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.losses import Loss, entropies, mean, total
from ttac.passes.graph.builder import Builder
from ttac.passes.step_graphs.context import Subject
from ttac.passes.step_graphs.probabilities import over_positions

FLOOR = 1e-5
"""Added to a probability before its logarithm, as in the official code."""


def check(subject: Subject) -> None:
    """Raise UnsupportedError for yes-or-no answers, which have no classes that a batch could hold evenly."""
    if subject.head is not None and subject.head.binary:
        others = ", ".join(f"`{name}`" for name in methods.that_train() if name != "shot-im")
        raise UnsupportedError(
            "the model answers yes or no, and `shot-im` asks a batch for all classes in equal numbers",
            where="`--method shot-im`",
            hint=f"methods that fit: {others}",
        )


def information(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """mean_i H(p_i) - H(mean_i p_i), both with ln(p + 1e-5), over all positions."""
    axis = head.axis or 0
    p = op.Softmax(scores, axis=axis)
    certain = mean(op, op.ReduceSum(_surprise(op, p), [axis], keepdims=0), "")
    diversity = total(op, _surprise(op, over_positions(op.ReduceMean, p, axis)), "diversity")
    scalar = op.Sub(certain, diversity, name="information")
    plain = mean(op, entropies(op, scores, head), "entropy")
    return Loss(scalar=scalar, stats={"entropy": plain, "diversity": diversity}, head=head)


def _surprise(op: Builder, p: ir.Value) -> ir.Value:
    """-p ln(p + 1e-5) of each probability."""
    return op.Neg(op.Mul(p, op.Log(op.Add(p, FLOOR))))
