"""A loss that does not reward ever longer scores: the entropy over the classes and one more answer, "uncertain".

Zhang et al., "COME: Test-time adaptation by conservatively minimizing entropy", ICLR 2025 (arXiv:2410.10894).  The
scores keep their length while they turn: the length enters as a number that has no gradient.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.losses import SAMPLES, WEIGHTS, Loss, entropies, mean, total
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims

LENGTHS = "scores.length"
FLOOR = 1e-7
"""Added to each probability, as in the official code."""


def conservative(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """sum_i w_i H(b_i) with b_i = softmax([x_i, ln K]) over K classes and "uncertain", and x_i = z_i/|z_i| * sg(|z_i|).

    `scores.length` holds the lengths |z_i|, which another graph of the method computes (`lengths`).
    """
    axis = head.axis or 0
    plain = entropies(op, scores, head)
    plain.name = "entropy.plain"
    each = _opinion(op, scores, axis, head.outputs)
    each.name = SAMPLES
    weights = ir.val(WEIGHTS, dtype=each.dtype, shape=each.shape)
    sizes = [1 if i == axis else size for i, size in enumerate(dims(scores))]
    length = ir.val(LENGTHS, dtype=scores.dtype, shape=ir.Shape(sizes))
    op.graph.inputs.extend([weights, length])
    turned = op.Mul(op.Div(scores, op.ReduceL2(scores, [axis], keepdims=1)), length)
    scalar = total(op, op.Mul(_opinion(op, turned, axis, head.outputs), weights), "entropy.conservative")
    return Loss(
        scalar=scalar,
        stats={"entropy": mean(op, plain, "entropy")},
        head=head,
        samples=each,
        weights=weights,
        scores=scores,
        other_inputs=(length,),
    )


def _opinion(op: Builder, scores: ir.Value, axis: int, classes: int) -> ir.Value:
    """The entropy at each position of softmax([scores, ln classes]), with 1e-7 added to each probability."""
    uncertain = op.Add(op.Mul(op.ReduceSum(scores, [axis], keepdims=1), 0.0), math.log(classes))
    p = op.Add(op.Softmax(op.Concat(scores, uncertain, axis=axis), axis=axis), FLOOR)
    return op.Neg(op.ReduceSum(op.Mul(p, op.Log(p)), [axis], keepdims=0))
