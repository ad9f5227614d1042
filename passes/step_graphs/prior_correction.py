"""The returned scores corrected by the frequencies of the classes in the batch, as an option of every method.

Marsden et al., "Universal test-time adaptation through weight ensembling, diversity weighting, and prior correction",
WACV 2024 (arXiv:2306.00650), with the authors' code: the factor multiplies the scores, also negative ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.step_graphs.answer import in_output_form
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph, read

CORRECT, CORRECTED = "correct_prior", "corrected"
TINY = 1e-30
"""Least probability in a logarithm."""


def is_on(settings: Mapping[str, Any]) -> bool:
    """Whether the settings turn the correction on."""
    return bool(settings.get("prior_correction"))


def correct_prior(context: Context, own: str = "") -> MethodGraph:
    """The scores times (f + s)/(1 + s C) of f, the mean probabilities of the batch; s = max(1/N, 1/C)/max f.

    The scores are those before the model's Softmax, or the logarithms of probabilities where no graph gives scores.
    `own` names a value in the form of the output that the method returns in place of the model's prediction.
    """
    op = new_graph(CORRECT, context.opset)
    given = read(op, own or context.logits, context.head.shape)
    are_probabilities = context.head.values == "probabilities" if own else context.logits_are_probabilities
    scores = op.Log(op.Max(given, TINY)) if are_probabilities else given
    return finished(op, {CORRECTED: in_output_form(op, _corrected(op, scores, context.classes), context.head)})


def _corrected(op: Builder, scores: ir.Value, classes: int) -> ir.Value:
    f = op.ReduceMean(op.Softmax(scores, axis=1), [0], keepdims=1)
    count = op.Cast(op.Shape(scores, start=0, end=1), to=int(ir.DataType.FLOAT))
    share = op.Max(op.Reciprocal(count), 1.0 / classes)
    s = op.Div(share, op.ReduceMax(f, [1], keepdims=1))
    return op.Mul(scores, op.Div(op.Add(f, s), op.Add(op.Mul(s, float(classes)), 1.0)))
