"""A window of the stream's last samples: a step predicts its samples, and adapts to the window when it is full.

A step with few samples has poor batch statistics.  So the norms of the prediction take the running averages that
full windows move, and the source's before the first full window.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from ttac.passes.adapt.adapt_norms import Rewriter, adapt_norms
from ttac.passes.adapt.centre import constant
from ttac.passes.graph.sample_set import sample_axis
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, freeze, state_input
from ttac.passes.norms.norm_sites import NormSite, bind_sites
from ttac.passes.step_graphs.context import MethodGraph, finished, new_graph
from ttac.passes.step_graphs.return_to_source import return_to_source
from ttac.runtime.events import ADAPTED
from ttac.spec import Statistics

WINDOW, PREDICT = "window", "predict"
"""The setting and the graph that moves the window, and the graph that predicts."""
FULL, FILLED = "window.full", "window.filled"
"""Output that is 1 if the window is full of samples that no step adapted to, and the state that counts them."""
RUNNING = Statistics("running", "ttac.passes.step_graphs.window:use_running")
"""The running averages that other graphs move, as state."""
END = 2**63 - 1
FLOAT = int(ir.DataType.FLOAT)


def kept(name: str) -> str:
    """Name of the state with the last samples of the input `name`."""
    return f"{WINDOW}.{name}"


def predicted(name: str) -> str:
    """Name of the output `name` in the graph that predicts."""
    return f"{name}.{PREDICT}"


def windowed(inputs: Sequence[ir.Value]) -> list[ir.Value]:
    """The inputs with an axis of samples; the window keeps these."""
    return [x for x in inputs if sample_axis(x) is not None]


def window(inputs: Sequence[ir.Value], size: int, opset: int) -> MethodGraph:
    """The last `size` samples of each of the model's inputs, and whether `size` of them are new."""
    op = new_graph(WINDOW, opset)
    state, count = [], None
    with op.at(WINDOW):
        for x in windowed(inputs):
            axis, shape = sample_axis(x) or 0, dims(x)
            value = ir.val(str(x.name), dtype=x.dtype, shape=ir.Shape(shape))
            op.graph.inputs.append(value)
            initial = np.zeros([size if i == axis else int(n) for i, n in enumerate(shape)], _dtype(x))
            before = state_input(op.graph, kept(str(x.name)), initial)
            after = op.Slice(op.Concat(before, value, axis=axis), [-size], [END], [axis])
            state.append(StateTensor(name=str(before.name), role="counter", initial=initial, value=before, next=after))
            count = count or op.Cast(op.Squeeze(op.Shape(value, start=axis, end=axis + 1), [0]), to=FLOAT)
        assert count is not None
        zero = np.zeros((), np.float32)
        filled = state_input(op.graph, FILLED, zero)
        total = op.Add(filled, count)
        full = op.GreaterOrEqual(total, float(size))
        following = op.Where(full, 0.0, total)
        state.append(StateTensor(name=FILLED, role="counter", initial=zero, value=filled, next=following))
        outputs = {FULL: op.Cast(full, to=FLOAT)}
    return finished(op, outputs, state, {FULL: ADAPTED})


def running_model(
    infer: ir.Model, sites: Sequence[NormSite], trained: Collection[str], *, returns: bool = False
) -> ir.Model:
    """A copy of the source model whose norms read the `trained` state, and running averages where they are batch norms.

    Its outputs have the names `predicted`.  With `returns`, a batch nearer to the source is predicted with the source's
    statistics, and a further output says whether the batch is in reach (`ttac.passes.step_graphs.return_to_source`).
    """
    copy = infer.clone()
    bound = bind_sites(sites, copy)
    adaptation = adapt_norms(copy, bound, RUNNING, {}, trains=bool(trained))
    freeze(copy.graph, [tensor for tensor in adaptation.parameters if tensor.name not in trained])
    for value in copy.graph.outputs:
        value.name = predicted(str(value.name))
    if returns:
        return_to_source(copy, bound)
    copy.graph.name = PREDICT
    return copy


def use_running(rewriter: Rewriter, site: NormSite) -> list[StateTensor]:
    """Normalise with the state `<site>.mean` and `<site>.var`."""
    initials = {"mean": constant(site.node, 3), "var": constant(site.node, 4)}
    values = [state_input(rewriter.op.graph, f"{site.name}.{role}", array) for role, array in initials.items()]
    rewriter.normalise_with(site, values[0], values[1])
    return [
        StateTensor(name=str(value.name), role="statistic", initial=array, value=value)
        for value, array in zip(values, initials.values(), strict=True)
    ]


def _dtype(x: ir.Value) -> np.dtype:
    return (x.dtype or ir.DataType.FLOAT).numpy()
