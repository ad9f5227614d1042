"""Norms that follow the stream by running averages, which begin again where the stream returns to the source's data.

Predictions with running averages read the statistics of earlier batches.  A shift, or broken samples, would spoil the
clean batch that follows.  So, with the guard, a batch that lies nearer to the source than to the averages starts from
the source's statistics.  The first adapted norm decides for all norms: no adaptation changes its input.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ttac.passes.adapt.adapt_norms import FARTHEST, Moments, Rewriter, between
from ttac.passes.adapt.centre import constant
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.norms.norm_sites import NormSite

REACH = 3.0
"""Farthest distance of a batch mean from its running average that counts, in deviations of the source."""
NEARER = "statistics.nearer"
"""Value of the graph: whether the batch lies nearer to the source than to the averages."""


@dataclass(frozen=True)
class Running:
    """Running statistics of a site: graph values [C], the mean relative to the batch's shift."""

    mean: ir.Value
    var: ir.Value


def use_average(rewriter: Rewriter, site: NormSite) -> list[StateTensor]:
    """Normalise with a running average that starts at the source statistics: r <- r + m*(batch - r), then use r.

    One batch moves a mean by at most m * `REACH` deviations of the source, and a variance r to at most
    r * (1 - m + m * `REACH`^2).  No average follows a batch farther than `FARTHEST` deviations from the source.
    """
    op, batch = rewriter.op, rewriter.observe(site)
    momentum = float(rewriter.settings["statistics_momentum"])
    deviation = np.sqrt(constant(site.node, 4) + site.eps).astype(np.float32)
    centre_now = constant(site.node, 3) - batch.shift
    tensors, running = running_state(op, site, batch)
    before = prior(rewriter, site, batch, running)
    near = between(op, batch.mean, centre_now, FARTHEST * deviation)
    change = between(op, op.Sub(near, before.mean), np.zeros_like(deviation), REACH * deviation)
    growth = op.Sub(op.Min(batch.var, (FARTHEST * deviation) ** 2), before.var)
    mean = op.Add(before.mean, op.Mul(change, momentum))
    var = op.Add(before.var, op.Mul(op.Min(growth, op.Mul(before.var, REACH**2 - 1)), momentum))
    rewriter.normalise_with(site, mean, var)
    return moved_state(op, batch, tensors, Running(mean, var))


def running_state(op: Builder, site: NormSite, batch: Moments) -> tuple[list[StateTensor], Running]:
    """Running mean and variance of the site as state that begins at the source's, and as values beside the batch's."""
    tensors = []
    for role, position in (("mean", 3), ("var", 4)):
        initial = constant(site.node, position)
        value = state_input(op.graph, f"{site.name}.{role}", initial)
        tensors.append(StateTensor(name=str(value.name), role="statistic", initial=initial, value=value))
    mean, var = (tensor.value for tensor in tensors)
    return tensors, Running(op.Sub(mean, batch.shift) if batch.shift.any() else mean, var)


def moved_state(op: Builder, batch: Moments, tensors: list[StateTensor], running: Running) -> list[StateTensor]:
    """The state of `running_state` that becomes `running` after the batch."""
    mean = op.Add(running.mean, batch.shift) if batch.shift.any() else running.mean
    return [replace(tensor, next=value) for tensor, value in zip(tensors, (mean, running.var), strict=True)]


def prior(rewriter: Rewriter, site: NormSite, batch: Moments, running: Running) -> Running:
    """The statistics that the batch moves: the running ones; with the guard the source's, for a batch nearer to it."""
    if not rewriter.guarded:
        return running
    op, mean, var = rewriter.op, constant(site.node, 3) - batch.shift, constant(site.node, 4)
    if NEARER not in rewriter.shared:
        rewriter.shared[NEARER] = _is_nearer(op, site, batch, running)
    nearer = rewriter.shared[NEARER]
    return Running(op.Where(nearer, mean, running.mean), op.Where(nearer, var, running.var))


def _is_nearer(op: Builder, site: NormSite, batch: Moments, running: Running) -> ir.Value:
    """Whether the batch lies nearer to the source than to the running statistics, a truth value.

    The distance is the sum over channels of (m - m')^2 + (s - s')^2 in units of the source's variance, with means m and
    deviations s: the squared 2-Wasserstein distance of normal distributions (Olkin and Pukelsheim, 1982).  No channel
    counts beyond `FARTHEST` deviations.  With v from source to batch, and u from source to average, the batch is nearer
    to the source where |v|^2 < |v - u|^2, or u.(u - 2v) > 0.
    """
    mean, var = constant(site.node, 3) - batch.shift, constant(site.node, 4) + np.float32(site.eps)
    deviation = np.sqrt(var).astype(np.float32)
    far, zero = FARTHEST * deviation, np.zeros_like(deviation)
    means = [between(op, op.Sub(value, mean), zero, far) for value in (running.mean, batch.mean)]
    spreads = [op.Sub(op.Min(op.Sqrt(op.Add(v, site.eps)), far), deviation) for v in (running.var, batch.var)]
    products = [op.Mul(u, op.Sub(u, op.Add(v, v))) for u, v in (means, spreads)]
    total = op.ReduceSum(op.Div(op.Add(*products), var), keepdims=0)
    return op.Greater(total, 0.0, name=NEARER)
