"""Probabilities of a head's scores, for graphs that weigh or judge samples."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from ttac.passes.differentiate.heads import Head
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims


def probabilities(
    op: Builder, scores: ir.Value, head: Head, *, are_probabilities: bool = False
) -> tuple[ir.Value, int]:
    """The probabilities at each position and their axis: of the classes, or 1 - s and s of every answer.

    With `are_probabilities`, `scores` already is the output of a Softmax or Sigmoid.
    """
    axis = len(head.shape) if head.axis is None else head.axis
    if head.binary:
        each = scores if head.axis is not None else op.Unsqueeze(scores, [axis])
        if are_probabilities:
            return op.Concat(op.Sub(1.0, each), each, axis=axis), axis
        return op.Concat(op.Sigmoid(op.Neg(each)), op.Sigmoid(each), axis=axis), axis
    if are_probabilities:
        return scores, axis
    return op.Softmax(scores, axis=axis), axis


def over_positions(reduce: Callable[..., ir.Value], value: ir.Value, axis: int) -> ir.Value:
    """`value` reduced over all axes but `axis`, from the last to the first, by `op.ReduceMean` or `op.ReduceSum`."""
    for other in reversed([i for i in range(len(dims(value))) if i != axis]):
        value = reduce(value, [other], keepdims=0)
    return value
