"""Rewrite recognised norms into adaptive ones: which statistics they normalise with, and whose scale and bias train.

Every adapted site owns its tensors: exporters merge initializers with equal bytes, so sites are untied here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.adapt.centre import centre, constant
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER, ROOM_KEY
from ttac.passes.graph.sample_set import sample_axis
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.norms.norm_sites import NormSite
from ttac.settings import AT, is_guarded
from ttac.spec import SOURCE_STATISTICS, Statistics, function_of

ROOM = "adapt"
BATCH_SIZE = "batch.size"
FARTHEST = 2.0
"""Farthest distance of a batch mean from the source mean that counts, in deviations of the source.

Chosen on the tuning half of `benchmarks.guard_study`: a larger bound let broken images do more harm.  On the shipped
stream, with a reset before each shift, this bound and 10 gave the same errors.
"""
TRACKED = 0.01
"""Least weight of the newest batch in the statistics for `bake`: they cover the last hundred batches, roughly."""
WINDOWED = 0.1
"""The same, for predictions between full windows (`ttac.passes.step_graphs.window`), which must follow the stream."""
TRACKED_BATCHES = "statistics.batches"
"""State that counts the batches in the statistics for `bake`."""


@dataclass(frozen=True)
class Adaptation:
    """Result of the adapt room: the sites in graph order, the new state, and the parameters that train."""

    sites: tuple[NormSite, ...] = ()
    statistics: Statistics = SOURCE_STATISTICS
    parameters: tuple[StateTensor, ...] = ()
    tracked: tuple[StateTensor, ...] = ()

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """All new state."""
        return self.parameters + self.tracked

    @property
    def moves(self) -> dict[str, str]:
        """Output of the forward -> the tracked tensor that takes its value."""
        return {str(tensor.next.name): tensor.name for tensor in self.tracked if tensor.next is not None}


@dataclass(frozen=True)
class Moments:
    """Batch statistics of one site: graph values [C], relative to the constant `shift` [C] (mean - shift, variance)."""

    mean: ir.Value
    var: ir.Value
    shift: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Rewriter:
    """The builder and the values that the norms of one model share while a policy rewrites them.

    Attributes:
        op: builder that inserts nodes in front of the site's node.
        settings: every option of the method with its value.
        batch: the most samples of a step, None if unknown.
        observed: the sites whose batch statistics are known, with these.
        shared: values that the first norm computes for all norms, by name.
    """

    op: Builder
    settings: Mapping[str, Any]
    batch: int | None = None
    observed: list[tuple[NormSite, Moments]] = field(default_factory=list)
    shared: dict[str, ir.Value] = field(default_factory=dict)

    @cached_property
    def size(self) -> ir.Value:
        """The number of samples of this step, a float scalar."""
        return batch_size(self.op, self.op.graph)

    @property
    def guarded(self) -> bool:
        """Whether the settings turn the guard on."""
        return is_guarded(self.settings)

    def observe(self, site: NormSite) -> Moments:
        """Batch mean and biased variance of the site's input, free of cancellation."""
        x, shift = centre(self.op, site)
        mean, var = self.op.Moments(x)
        moments = Moments(mean, var, shift)
        self.observed.append((site, moments))
        return moments

    def normalise_with(self, site: NormSite, mean: ir.Value, var: ir.Value) -> None:
        """Let the site's node normalise with `mean` and `var` [C], in place."""
        site.node.replace_input_with(3, mean)
        site.node.replace_input_with(4, var)
        site.node.metadata_props[ROOM_KEY] = self.op.room
        site.node.metadata_props[LAYER] = site.name


def adapt_norms(
    model: ir.Model,
    sites: Sequence[NormSite],
    statistics: Statistics,
    settings: Mapping[str, Any],
    *,
    trains: bool,
    batch: int | None = None,
) -> Adaptation:
    """Rewrite `sites` of `model` in place: batch norms normalise with `statistics`, the others stay unchanged.

    With `trains`, scale and bias of every site that is `trained` become state.

    Args:
        batch: the most samples of a step, None if unknown: a policy may have a cheaper graph for single samples.
    """
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    statistics = statistics if any(site.kind == "batch" for site in sites) else SOURCE_STATISTICS
    rewriter = Rewriter(op=op, settings=settings, batch=batch)
    rewrite = function_of(statistics.rewrite) if statistics.rewrite else None
    parameters: list[StateTensor] = []
    tracked: list[StateTensor] = []
    for site in sites:
        with op.at(site.name, before=site.node):
            if trains and site.trained:
                parameters += untie(op, site)
            if site.kind == "batch" and rewrite:
                tracked += rewrite(rewriter, site)
    if rewriter.observed and not tracked:
        newest = WINDOWED if settings.get("window") else TRACKED
        tracked = track(op, rewriter.observed, rewriter.size, newest)
    return Adaptation(tuple(sites), statistics, tuple(parameters), tuple(tracked))


def without_adaptation(statistics: Statistics, settings: Mapping[str, Any]) -> tuple[Statistics, Mapping[str, Any]]:
    """Statistics and settings with which `adapt_norms` makes a graph that must still equal the source model."""
    if statistics.neutral is None:
        return SOURCE_STATISTICS, {}
    return statistics, {**{name: value for name, value in settings.items() if AT not in name}, **statistics.neutral}


def has_positions(site: NormSite) -> bool:
    """Whether a channel of one sample has several values at `site`: a single value has no variance.

    A norm over [T*N, C], whose first axis is more than the batch, has none either.
    """
    assert site.x.shape is not None
    return site.spatial > 1 and math.prod(int(str(size)) for size in site.x.shape[2:]) == site.spatial


def batch_size(op: Builder, graph: ir.Graph) -> ir.Value:
    """The number of samples of this step, as a float scalar, computed at the head of the graph."""
    first = next(iter(graph), None)
    with op.at("batch", before=first):
        axis = sample_axis(graph.inputs[0]) or 0
        count = op.Cast(op.Shape(graph.inputs[0], start=axis, end=axis + 1), to=int(ir.DataType.FLOAT))
        return op.Squeeze(count, [0], name=BATCH_SIZE)


def untie(op: Builder, site: NormSite) -> list[StateTensor]:
    """Give the site its own scale and, where it has one, bias, as state; returns the tensors."""
    state = []
    for position, role in enumerate([role for role in site.parameters if role in ("scale", "bias")], start=1):
        initial = constant(site.node, position)
        value = state_input(op.graph, f"{site.name}.{role}", initial)
        site.node.replace_input_with(position, value)
        state.append(StateTensor(name=str(value.name), role="parameter", initial=initial, value=value))
    return state


def use_batch(rewriter: Rewriter, site: NormSite) -> list[StateTensor]:
    """Normalise with the statistics of the batch."""
    batch = rewriter.observe(site)
    rewriter.normalise_with(site, batch.mean, batch.var)
    return []


def use_blend(rewriter: Rewriter, site: NormSite) -> list[StateTensor]:
    """Normalise with l*source + (1-l)*batch, l = prior/(prior + n) (Schneider et al., arXiv:2006.16971, eq. 3)."""
    op, batch = rewriter.op, rewriter.observe(site)
    prior = float(rewriter.settings["prior"])
    weight = op.Div(prior, op.Add(rewriter.size, prior))
    source_mean, source_var = constant(site.node, 3) - batch.shift, constant(site.node, 4)
    mean = op.Add(batch.mean, op.Mul(op.Sub(source_mean, batch.mean), weight))
    var = op.Add(batch.var, op.Mul(op.Sub(source_var, batch.var), weight))
    rewriter.normalise_with(site, mean, var)
    return []


def between(op: Builder, value: ir.Value, middle: np.ndarray, reach: np.ndarray) -> ir.Value:
    """The value, no farther than `reach` from `middle`."""
    return op.Max(op.Min(value, middle + reach), middle - reach)


def track(
    op: Builder, observed: Sequence[tuple[NormSite, Moments]], size: ir.Value, newest: float
) -> list[StateTensor]:
    """Average the batch statistics for `bake` and for predictions of a window; the forward does not read them.

    The source statistics count as one batch, and the newest of t batches has the weight 1 / (t + 1), at least
    `newest`.  No batch counts with a mean or a deviation farther than `FARTHEST` deviations of the source.  Means, and
    unbiased variances, of all sites are averaged as one vector: a hundred tiny nodes become eleven.
    """
    sites = [site for site, _ in observed]
    deviation = np.concatenate([np.sqrt(site.parameters["var"] + site.eps) for site in sites]).astype(np.float32)
    centre_now = np.concatenate([site.parameters["mean"] for site in sites])
    zero = np.zeros((), np.float32)
    before = state_input(op.graph, TRACKED_BATCHES, zero)
    with op.at("statistics"):
        batches = op.Add(before, 1.0)
        weight = op.Max(op.Div(1.0, op.Add(batches, 1.0)), newest)
        means = [op.Add(m.mean, m.shift) if m.shift.any() else m.mean for _, m in observed]
        count = op.Mul(size, np.concatenate([np.full(s.channels, float(s.spatial), np.float32) for s in sites]))
        unbiased = op.Div(count, op.Max(op.Sub(count, 1.0), 1.0))
        variances = op.Mul(_joined(op, [m.var for _, m in observed]), unbiased)
        means_near = between(op, _joined(op, means), centre_now, FARTHEST * deviation)
        variances_near = op.Min(variances, (FARTHEST * deviation) ** 2)
        batches.name = f"{TRACKED_BATCHES}.next"
        return [
            *_average(op, "mean", sites, means_near, weight),
            *_average(op, "var", sites, variances_near, weight),
            StateTensor(name=TRACKED_BATCHES, role="counter", initial=zero, value=before, next=batches),
        ]


def _joined(op: Builder, values: Sequence[ir.Value]) -> ir.Value:
    return op.Concat(*values, axis=0) if len(values) > 1 else values[0]


def _average(
    op: Builder, role: str, sites: Sequence[NormSite], observed: ir.Value, weight: ir.Value
) -> list[StateTensor]:
    initials = [site.parameters[role] for site in sites]
    inputs = [state_input(op.graph, f"{site.name}.{role}", i) for site, i in zip(sites, initials, strict=True)]
    running = _joined(op, inputs)
    average = op.Add(running, op.Mul(op.Sub(observed, running), weight))
    split: Any = op.Split(average, [site.channels for site in sites], axis=0, outputs=len(sites))
    parts = split if isinstance(split, tuple) else (split,)
    state = []
    for value, initial, part in zip(inputs, initials, parts, strict=True):
        part.name = f"{value.name}.next"
        state.append(StateTensor(name=str(value.name), role="statistic", initial=initial, value=value, next=part))
    return state
