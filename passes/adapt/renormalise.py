"""Batch renormalisation: an adapted norm has the value of running statistics and the gradient of batch statistics.

Zhao et al., "DELTA: degradation-free fully test-time adaptation", ICLR 2023, after Ioffe, "Batch renormalization",
NeurIPS 2017.  With the batch's mean m and deviation s, and the running mean M and deviation S:

    y = ((x - m)/s * r + d) * scale + bias,   r = s/S and d = (m - M)/S without a gradient
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.passes.adapt.adapt_norms import Moments, Rewriter
from ttac.passes.adapt.centre import constant
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.norms.norm_sites import NormSite

BEGUN = "statistics.begun"
"""State: 1 once a batch has set the running statistics, else 0."""


@dataclass(frozen=True)
class Running:
    """Running statistics of a site: state [C], the mean relative to the batch's shift."""

    mean: ir.Value
    var: ir.Value


def use_renorm(rewriter: Rewriter, site: NormSite) -> list[StateTensor]:
    """Renormalise with running averages of mean and deviation, which begin at the first batch and move after use."""
    op, batch = rewriter.op, rewriter.observe(site)
    mean, var = (constant(site.node, position) for position in (3, 4))
    inputs = [state_input(op.graph, f"{site.name}.{role}", a) for role, a in (("mean", mean), ("var", var))]
    begun, begins = _begun(op)
    used = op.Greater(begun, 0.0)
    shifted = op.Sub(inputs[0], batch.shift) if batch.shift.any() else inputs[0]
    running = Running(op.Where(used, shifted, batch.mean), op.Where(used, inputs[1], batch.var))
    renormalise(rewriter, site, batch, running)
    newest, eps = float(rewriter.settings["statistics_momentum"]), site.eps
    before, now = (op.Sqrt(op.Add(value, eps)) for value in (running.var, batch.var))
    deviation = op.Add(before, op.Mul(op.Sub(now, before), newest))
    average = op.Add(running.mean, op.Mul(op.Sub(batch.mean, running.mean), newest))
    following = [
        op.Add(average, batch.shift) if batch.shift.any() else average,
        op.Sub(op.Mul(deviation, deviation), eps),
    ]
    state = [
        StateTensor(name=str(value.name), role="statistic", initial=initial, value=value, next=moved)
        for value, initial, moved in zip(inputs, (mean, var), following, strict=True)
    ]
    return [*state, *begins]


def renormalise(rewriter: Rewriter, site: NormSite, batch: Moments, running: Running) -> None:
    """Let the site's node give the value of `running` statistics with the gradient of `batch` statistics, in place."""
    op, node = rewriter.op, site.node
    scale, bias = node.inputs[1:3]
    inverse = op.Reciprocal(op.Sqrt(op.Add(running.var, site.eps)))
    r = op.Detached(op.Mul(op.Sqrt(op.Add(batch.var, site.eps)), inverse))
    d = op.Detached(op.Mul(op.Sub(batch.mean, running.mean), inverse))
    node.replace_input_with(1, op.Mul(scale, r))
    node.replace_input_with(2, op.Add(bias, op.Mul(scale, d)))
    rewriter.normalise_with(site, batch.mean, batch.var)


def _begun(op: Builder) -> tuple[ir.Value, list[StateTensor]]:
    """The state that says whether a batch was seen, and its move at the first site that asks."""
    known = {str(value.name): value for value in op.graph.inputs}
    if BEGUN in known:
        return known[BEGUN], []
    zero = np.zeros((), np.float32)
    value = state_input(op.graph, BEGUN, zero)
    following = op.Max(value, 1.0)
    return value, [StateTensor(name=BEGUN, role="counter", initial=zero, value=value, next=following)]
