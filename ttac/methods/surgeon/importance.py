"""The importance of each layer for this batch: dynamic activation sparsity (Ma et al., arXiv:2503.20354)."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.plan.keep_ratios import KEEP
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph


def importance(context: Context) -> MethodGraph:
    """The keep ratio of each layer: I_i / max I with I_i = G_i * M_i, from the gradients of the probe.

    G_i is the root mean square of the weight's gradient.  M_i = -ln(m_i / sum m) with m_i the elements of the layer's
    cached input: a large input has to matter more.  (The paper's pruning ratio is 1 - ratio.  Its two normalisations by
    the maximum over the layers cancel.)  If all gradients are zero, or one is not finite, the probe is blind: every
    ratio is 1, and so is `probe.blind`.  The graph reports each layer's ratio, and as `kept` the ratio of all elements.
    """
    op = new_graph("importance", context.opset)
    shapes = {g: p.initial for p, g in zip(context.parameters, context.gradients, strict=True)}
    gradients = [layer.gradient for layer in context.layers]
    sizes = np.array([layer.elements for layer in context.layers], np.float64)
    memory = (-np.log(sizes / sizes.sum())).astype(np.float32)
    initial = np.ones(len(sizes), np.float32)
    before = state_input(op.graph, KEEP, initial)
    with op.at("importance"):
        squares = [_mean_square(op, state_input(op.graph, g, shapes[g])) for g in gradients]
        each = op.Mul(op.Sqrt(op.Concat(*squares, axis=0)), memory)
        ratios, sees = _ratios(op, each, float(context.settings["keep"]))
        kept = op.ReduceSum(op.Mul(ratios, (sizes / sizes.sum()).astype(np.float32)), keepdims=0)
        blind = op.Squeeze(op.Cast(op.Not(sees), to=int(ir.DataType.FLOAT)), [0])
        parts = (
            op.Split(ratios, [1] * len(sizes), axis=0, outputs=len(sizes)) if len(sizes) > 1 else [op.Identity(ratios)]
        )
    state = StateTensor(name=KEEP, role="sparsity", initial=initial, value=before, next=ratios)
    named = {f"kept.{layer.parameter}": value for layer, value in zip(context.layers, parts, strict=True)}
    outputs = {"kept": kept, "probe.blind": blind, **named}
    return finished(op, outputs, [state], {name: name for name in outputs})


def _ratios(op: Builder, importances: ir.Value, most: float) -> tuple[ir.Value, ir.Value]:
    """The keep ratios [layers], `most` for the most important layer; and whether the probe sees anything, bool [1]."""
    largest = op.ReduceMax(importances, [0], keepdims=1)
    # The comparisons are false for 0, infinity and NaN; a maximum may pass over a NaN.
    sees = op.And(op.Greater(largest, 0.0), op.Less(op.ReduceSum(importances, [0], keepdims=1), math.inf))
    ratio = op.Mul(op.Div(importances, largest), most)
    return op.Where(sees, ratio, 1.0), sees


def _mean_square(op: Builder, gradient: ir.Value) -> ir.Value:
    """The mean of the squares, [1]; a flat copy of a weight's gradient would be as large as the weight."""
    sizes = dims(gradient)
    total = op.ReduceSumSquare(gradient, list(range(len(sizes))), keepdims=0)
    return op.Mul(op.Reshape(total, [1]), 1.0 / math.prod(int(size) for size in sizes))
