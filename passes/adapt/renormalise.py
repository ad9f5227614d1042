"""Batch renormalisation: an adapted norm has the value of running statistics and the gradient of batch statistics.

Zhao et al., "DELTA: degradation-free fully test-time adaptation", ICLR 2023, after Ioffe, "Batch renormalization",
NeurIPS 2017.  With the batch's mean m and deviation s, and the running mean M and deviation S:

    y = ((x - m)/s * r + d) * scale + bias,   r = s/S and d = (m - M)/S without a gradient
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.adapt.adapt_norms import Moments, Rewriter
from ttac.passes.adapt.running_averages import Running, moved_state, prior, running_state
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.norms.norm_sites import NormSite

BEGUN = "statistics.begun"
"""State: 1 once a batch has set the running statistics, else 0."""


def use_renorm(rewriter: Rewriter, site: NormSite) -> list[StateTensor]:
    """Renormalise with running averages of mean and deviation, which begin at the first batch and move after use."""
    op, batch = rewriter.op, rewriter.observe(site)
    tensors, known = running_state(op, site, batch)
    begun, begins = _begun(op)
    used = op.Greater(begun, 0.0)
    before = prior(rewriter, site, batch, known)
    running = Running(op.Where(used, before.mean, batch.mean), op.Where(used, before.var, batch.var))
    renormalise(rewriter, site, batch, running)
    newest, eps = float(rewriter.settings["statistics_momentum"]), site.eps
    was, now = (op.Sqrt(op.Add(value, eps)) for value in (running.var, batch.var))
    deviation = op.Add(was, op.Mul(op.Sub(now, was), newest))
    average = op.Add(running.mean, op.Mul(op.Sub(batch.mean, running.mean), newest))
    var = op.Sub(op.Mul(deviation, deviation), eps)
    return [*moved_state(op, batch, tensors, Running(average, var)), *begins]


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
