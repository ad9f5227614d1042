"""Sharpness-aware minimisation in three graphs: climb to the worst point nearby, descend with the gradient found there.

Foret et al. (arXiv:2010.01412) as SAR uses it (arXiv:2302.12400, eq. 3 to 5): one length over all trained tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.context import Context, MethodGraph, finished
from ttac.passes.step_graphs.optimizers import Stepped, flatten, sgd, unflatten
from ttac.passes.step_graphs.sample_weights import AGAIN

ROOM = "sharpness"
BEFORE, COLLAPSED = "parameters.before", "collapsed"
# As in the official code, against a gradient of length 0.
TINY = 1e-12


def ascend(context: Context) -> MethodGraph:
    """p <- p + rho*g/|g|, with p from before as the flat value `parameters.before`."""
    op = _builder(context, "ascend")
    values = [state_input(op.graph, p.name, p.initial) for p in context.parameters]
    slopes = [state_input(op.graph, g, p.initial) for p, g in zip(context.parameters, context.gradients, strict=True)]
    with op.at("ascend"):
        before, slope = op.Identity(flatten(op, values)), flatten(op, slopes)
        length = op.Sqrt(op.ReduceSumSquare(slope, keepdims=0))
        step = op.Div(float(context.settings["rho"]), op.Add(length, TINY))
        moved = unflatten(op, op.Add(before, op.Mul(slope, step)), context.parameters)
    return finished(op, {BEFORE: before}, _moved(context, values, moved))


def descend(context: Context) -> MethodGraph:
    """SGD from `parameters.before` with the gradient at the perturbed point; follows the loss there.

    `sar.ema` is 0 while there is none: an average that small is reset at once.  `collapsed` is 1 if it fell below
    `reset_threshold`, else 0.
    """
    op = _builder(context, "descend")
    slopes = [state_input(op.graph, g, p.initial) for p, g in zip(context.parameters, context.gradients, strict=True)]
    size = sum(p.initial.size for p in context.parameters)
    before = state_input(op.graph, BEFORE, np.zeros(size, np.float32))
    loss = state_input(op.graph, AGAIN, np.zeros((), np.float32))
    average = state_input(op.graph, "sar.ema", np.zeros((), np.float32))
    with op.at("descend"):
        following, momentum = sgd(op, Stepped(before, flatten(op, slopes)), {**context.settings, "nesterov": False})
        moved = unflatten(op, following, context.parameters)
        blended = op.Add(op.Mul(average, 0.9), op.Mul(loss, 0.1))
        ema = op.Where(op.Greater(average, 0.0), blended, loss)
        low = op.Cast(op.Less(ema, float(context.settings["reset_threshold"])), to=int(ir.DataType.FLOAT))
    counter = StateTensor(name="sar.ema", role="counter", initial=np.zeros((), np.float32), value=average, next=ema)
    state = [*_moved(context, [p.value for p in context.parameters], moved), *momentum, counter]
    return finished(op, {COLLAPSED: low}, state)


def restore(context: Context) -> MethodGraph:
    """p <- `parameters.before`, exactly: the second look selected nothing."""
    op = _builder(context, "restore")
    size = sum(p.initial.size for p in context.parameters)
    before = state_input(op.graph, BEFORE, np.zeros(size, np.float32))
    with op.at("restore"):
        moved = unflatten(op, op.Identity(before), context.parameters)
    return finished(op, {}, _moved(context, [p.value for p in context.parameters], moved))


def _builder(context: Context, name: str) -> Builder:
    return Builder(ir.Graph([], [], nodes=[], opset_imports={"": context.opset}, name=name), ROOM, context.opset)


def _moved(context: Context, values: Sequence[ir.Value], moved: Sequence[ir.Value]) -> list[StateTensor]:
    return [
        StateTensor(name=p.name, role=p.role, initial=p.initial, value=value, next=after)
        for p, value, after in zip(context.parameters, values, moved, strict=True)
    ]
