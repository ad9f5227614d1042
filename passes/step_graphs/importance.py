"""Which layers matter for this batch: SURGEON's dynamic activation sparsity (arXiv:2503.20354; METHODS 6)."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.plan.keep_ratios import KEEP
from ttac.passes.step_graphs.context import Context, MethodGraph, finished

ROOM = "importance"


def importance(context: Context) -> MethodGraph:
    """The share each layer keeps: I_i / max I with I_i = G_i * M_i, from the gradients of the probe.

    G_i is the root mean square of the weight's gradient, M_i = -ln(m_i / sum m) with m_i the elements of its cached
    input: large inputs have to matter more.  (1 - share is the paper's pruning ratio; its two normalisations by the
    maximum over the layers cancel.)  Gradients that are all zero, or not finite, say nothing: everything is kept, and
    `probe.blind` is 1.  Reported are each layer's share and, as `kept`, that of all elements.
    """
    op = Builder(ir.Graph([], [], nodes=[], opset_imports={"": context.opset}, name="importance"), ROOM, context.opset)
    shapes = {g: p.initial for p, g in zip(context.parameters, context.gradients, strict=True)}
    gradients = [layer.gradient for layer in context.layers]
    sizes = np.array([layer.elements for layer in context.layers], np.float64)
    memory = (-np.log(sizes / sizes.sum())).astype(np.float32)
    before = state_input(op.graph, KEEP, np.ones(len(sizes), np.float32))
    with op.at("importance"):
        squares = [_mean_square(op, state_input(op.graph, g, shapes[g])) for g in gradients]
        found = op.Mul(op.Sqrt(op.Concat(*squares, axis=0)), memory)
        largest = op.ReduceMax(found, [0], keepdims=1)
        # False for 0, for infinity and, as every comparison, for what is not a number; a maximum may pass over that.
        sees = op.And(op.Greater(largest, 0.0), op.Less(op.ReduceSum(found, [0], keepdims=1), math.inf))
        ratio = op.Mul(op.Div(found, largest), float(context.settings["keep"]))
        shares = op.Where(sees, ratio, 1.0)
        kept = op.ReduceSum(op.Mul(shares, (sizes / sizes.sum()).astype(np.float32)), keepdims=0)
        blind = op.Squeeze(op.Cast(op.Not(sees), to=int(ir.DataType.FLOAT)), [0])
        each = op.Split(shares, [1] * len(sizes), axis=0, outputs=len(sizes)) if len(sizes) > 1 else [shares]
    state = StateTensor(name=KEEP, role="sparsity", initial=np.ones(len(sizes), np.float32), value=before, next=shares)
    named = {f"kept.{layer.parameter}": value for layer, value in zip(context.layers, each, strict=True)}
    outputs = {"kept": kept, "probe.blind": blind, **named}
    return finished(op, outputs, [state], {name: name for name in outputs})


def _mean_square(op: Builder, slope: ir.Value) -> ir.Value:
    """The mean of the squares, [1]."""
    flat = slope if slope.shape is not None and len(slope.shape) == 1 else op.Reshape(slope, [-1])
    return op.ReduceMean(op.Mul(flat, flat), [0], keepdims=1)
