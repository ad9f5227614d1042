"""Running statistics that follow the stream as fast as it drifts, and a gate on the gradient of norms without drift."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.adapt.adapt_norms import Moments, Rewriter
from ttac.passes.adapt.renormalise import renormalise
from ttac.passes.adapt.running_averages import Running, moved_state, prior, running_state
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.norms.norm_sites import NormSite
from ttac.passes.step_graphs.context import Context, MethodGraph, Subject, finished, new_graph

ACTIVE = "active"
EPS = 1e-3
"""Added to each variance in the distance, as in the official code: small variances are unstable."""
ONE = np.ones((), np.float32)


def check(subject: Subject) -> None:
    """Raise UnsupportedError if a norm is no batch norm: such norms have no running statistics."""
    others = [site for site in subject.sites if site.kind != "batch"]
    if others:
        raise UnsupportedError(
            f"`mecta` gates the running statistics of batch norms, and `{others[0].name}` is a {others[0].kind} norm",
            where="`--method mecta`",
            hint="take `--method eata` or `sar`; `ttac inspect` lists the methods that fit",
        )


def use_gated(rewriter: Rewriter, site: NormSite) -> list[StateTensor]:
    """Normalise with running statistics r <- r + b (batch - r), b = 1 - exp(-mean of D), D the distance of a channel.

    The gradient is that of batch statistics.  `<site>.active` is 1 if b is above settings["least_drift"], else 0: then
    the gradient of the norm's output passes to its input unchanged.
    """
    op, batch = rewriter.op, rewriter.observe(site)
    tensors, known = running_state(op, site, batch)
    before = prior(rewriter, site, batch, known)
    scale = float(rewriter.settings["drift_scale"])
    distance = op.ReduceMean(divergence(op, batch, before), [0], keepdims=0)
    rate = op.Sub(1.0, op.Exp(op.Mul(distance, -scale)))
    pairs = (before.mean, batch.mean), (before.var, batch.var)
    moved = Running(*(op.Add(r, op.Mul(op.Sub(b, r), rate)) for r, b in pairs))
    renormalise(rewriter, site, batch, moved)
    active = op.Greater(rate, float(rewriter.settings["least_drift"]))
    if rewriter.settings["least_drift"]:
        _pass_gradient(op, site, active)
    flag = state_input(op.graph, f"{site.name}.{ACTIVE}", ONE)
    on = op.Cast(active, to=int(ir.DataType.FLOAT))
    state = moved_state(op, batch, tensors, moved)
    return [*state, StateTensor(name=str(flag.name), role="counter", initial=ONE, value=flag, next=on)]


def divergence(op: Builder, batch: Moments, running: Running) -> ir.Value:
    """The symmetric Kullback-Leibler divergence of two normal distributions for each channel, [C]."""
    apart = op.Sub(batch.mean, running.mean)
    square = op.Mul(apart, apart)
    first, second = (op.Add(variance, EPS) for variance in (batch.var, running.var))
    ratios = [op.Div(op.Add(a, square), b) for a, b in ((first, second), (second, first))]
    return op.Sub(op.Mul(op.Add(*ratios), 0.5), 1.0)


def _pass_gradient(op: Builder, site: NormSite, active: ir.Value) -> None:
    """Let the readers of the norm read a value with its own gradient if it is `active`, else with its input's."""
    x, y, nodes = site.node.inputs[0], site.node.outputs[0], list(op.graph)
    readers = [(use.node, use.idx) for use in y.uses()]
    with op.at(site.name, before=nodes[nodes.index(site.node) + 1]):
        passed = op.Where(active, y, op.Add(x, op.Detached(op.Sub(y, x))))
    for reader, position in readers:
        reader.replace_input_with(position, passed)


def gate(context: Context) -> MethodGraph:
    """`some` is above 0 if a norm that trains is active; the graph reports the fraction of active norms."""
    op = new_graph("gate", context.opset)
    flags = [op.Unsqueeze(state_input(op.graph, f"{site}.{ACTIVE}", ONE), [0]) for site in trained_norms(context)]
    share = op.ReduceMean(op.Concat(*flags, axis=0) if len(flags) > 1 else flags[0], [0], keepdims=0)
    return finished(op, {"some": share}, stats={"some": "active"})


def trained_norms(context: Context) -> list[str]:
    """The names of the norms that train."""
    return [name.removesuffix(".scale") for name in (p.name for p in context.parameters) if name.endswith(".scale")]
