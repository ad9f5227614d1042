"""Rewrite recognised norms into adaptive ones: which statistics they normalise with, and whose scale and bias train.

Every adapted site owns its tensors: exporters merge initializers with equal bytes, so sites are untied here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.adapt.centre import centre, constant
from ttac.passes.adapt.per_sample import blend_samples
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.norms.norm_sites import NormSite
from ttac.settings import AT

ROOM = "adapt"
BATCH_SIZE = "batch.size"


@dataclass(frozen=True)
class Adaptation:
    """What the adapt room did: the sites in graph order, the state it made, and the parameters that train."""

    sites: tuple[NormSite, ...] = ()
    statistics: str = "source"
    parameters: tuple[StateTensor, ...] = ()
    tracked: tuple[StateTensor, ...] = ()

    @property
    def state(self) -> tuple[StateTensor, ...]:
        """All state that the room made."""
        return self.parameters + self.tracked


@dataclass(frozen=True)
class Moments:
    """Batch statistics of one site: graph values [C], relative to the constant `shift` [C] (mean - shift, variance)."""

    mean: ir.Value
    var: ir.Value
    shift: np.ndarray


def adapt_norms(
    model: ir.Model,
    sites: Sequence[NormSite],
    statistics: str,
    settings: Mapping[str, Any],
    *,
    trains: bool,
    batch: int | None = None,
) -> Adaptation:
    """Rewrite `sites` of `model` in place: batch norms normalise with `statistics`, the others stay as they are.

    With `trains`, scale and bias of every site that is `trained` become state.

    Args:
        statistics: "source", "batch", "blend" (settings["prior"] pseudo-samples), "ema", whose momentum is
            settings["statistics_momentum"], or "sample" (`ttac.passes.adapt.per_sample`).
        batch: the most samples of a step, where that is known: single samples have a cheaper graph.
    """
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    statistics = statistics if any(site.kind == "batch" for site in sites) else "source"
    policy = POLICIES.get(statistics)
    size = batch_size(op, model.graph) if policy else None
    parameters: list[StateTensor] = []
    tracked: list[StateTensor] = []
    observed: list[tuple[NormSite, Moments]] = []
    for site in sites:
        with op.at(site.name, before=site.node):
            if trains and site.trained:
                parameters += untie(op, site)
            if site.kind == "batch" and policy and size is not None:
                moments = observe(op, site)
                tracked += policy(op, site, moments, settings, size)
                observed.append((site, moments))
            elif site.kind == "batch" and statistics == "sample":
                blend_samples(op, site, settings, single=batch == 1)
    if observed and not tracked:
        assert size is not None
        tracked = track(op, observed, size, settings.get("statistics_momentum", 0.1))
    return Adaptation(tuple(sites), statistics, tuple(parameters), tuple(tracked))


def without_adaptation(statistics: str, settings: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Statistics and settings with which `adapt_norms` makes a graph that must still equal the source model.

    Per sample that is the very same graph, all of whose weight is on the source.
    """
    if statistics == "sample":
        return statistics, {**{name: value for name, value in settings.items() if AT not in name}, "tau": 1.0}
    return "source", {}


def batch_size(op: Builder, graph: ir.Graph) -> ir.Value:
    """The number of samples of this step, as a float scalar, computed at the head of the graph."""
    first = next(iter(graph), None)
    with op.at("batch", before=first):
        count = op.Cast(op.Shape(graph.inputs[0], start=0, end=1), to=int(ir.DataType.FLOAT))
        return op.Squeeze(count, [0], name=BATCH_SIZE)


def untie(op: Builder, site: NormSite) -> list[StateTensor]:
    """Give the site its own scale and, where it has one, bias, as state; returns the tensors."""
    made = []
    for position, role in enumerate([role for role in site.parameters if role in ("scale", "bias")], start=1):
        initial = constant(site.node, position)
        value = state_input(op.graph, f"{site.name}.{role}", initial)
        site.node.replace_input_with(position, value)
        made.append(StateTensor(name=str(value.name), role="parameter", initial=initial, value=value))
    return made


def observe(op: Builder, site: NormSite) -> Moments:
    """Batch mean and biased variance of the site's input, free of cancellation."""
    x, shift = centre(op, site)
    found_mean, found_var = op.Moments(x)
    return Moments(found_mean, found_var, shift)


Policy = Callable[[Builder, NormSite, Moments, Mapping[str, Any], ir.Value], list[StateTensor]]


def _normalise_with(site: NormSite, mean: ir.Value, var: ir.Value) -> None:
    site.node.replace_input_with(3, mean)
    site.node.replace_input_with(4, var)
    site.node.metadata_props["ttac.room"] = ROOM
    site.node.metadata_props[LAYER] = site.name


def use_batch(
    op: Builder, site: NormSite, batch: Moments, settings: Mapping[str, Any], size: ir.Value
) -> list[StateTensor]:
    """Normalise with the statistics of the batch (BN-1; METHODS 2)."""
    _normalise_with(site, batch.mean, batch.var)
    return []


def use_blend(
    op: Builder, site: NormSite, batch: Moments, settings: Mapping[str, Any], size: ir.Value
) -> list[StateTensor]:
    """Normalise with l*source + (1-l)*batch, l = prior/(prior + n) (Schneider et al., arXiv:2006.16971, eq. 3)."""
    prior = float(settings["prior"])
    weight = op.Div(prior, op.Add(size, prior))
    source_mean, source_var = constant(site.node, 3) - batch.shift, constant(site.node, 4)
    mean = op.Add(batch.mean, op.Mul(op.Sub(source_mean, batch.mean), weight))
    var = op.Add(batch.var, op.Mul(op.Sub(source_var, batch.var), weight))
    _normalise_with(site, mean, var)
    return []


def use_average(
    op: Builder, site: NormSite, batch: Moments, settings: Mapping[str, Any], size: ir.Value
) -> list[StateTensor]:
    """Normalise with a running average that starts at the source statistics: r <- (1-m)*r + m*batch, then use r."""
    momentum = float(settings["statistics_momentum"])
    made = []
    followed = []
    for role, position, observed in (("mean", 3, batch.mean), ("var", 4, batch.var)):
        initial = constant(site.node, position)
        running = state_input(op.graph, f"{site.name}.{role}", initial)
        shifted = op.Sub(running, batch.shift) if role == "mean" and batch.shift.any() else running
        average = op.Add(shifted, op.Mul(op.Sub(observed, shifted), momentum))
        following = op.Add(average, batch.shift) if shifted is not running else average
        made.append(
            StateTensor(name=str(running.name), role="statistic", initial=initial, value=running, next=following)
        )
        followed.append(average)
    _normalise_with(site, *followed)
    return made


POLICIES: dict[str, Policy] = {"batch": use_batch, "blend": use_blend, "ema": use_average}


def track(
    op: Builder, observed: Sequence[tuple[NormSite, Moments]], size: ir.Value, momentum: float
) -> list[StateTensor]:
    """Follow the batch statistics as BatchNorm in training mode would, for `bake`: the step itself does not read them.

    Means, and unbiased variances, of all sites are averaged as one vector: a hundred tiny nodes become seven.
    """
    with op.at("statistics"):
        means = [op.Add(m.mean, m.shift) if m.shift.any() else m.mean for _, m in observed]
        count = op.Mul(size, np.concatenate([np.full(s.channels, float(s.spatial), np.float32) for s, _ in observed]))
        unbiased = op.Div(count, op.Max(op.Sub(count, 1.0), 1.0))
        variances = op.Mul(_joined(op, [m.var for _, m in observed]), unbiased)
        return [
            *_average(op, "mean", [site for site, _ in observed], _joined(op, means), momentum),
            *_average(op, "var", [site for site, _ in observed], variances, momentum),
        ]


def _joined(op: Builder, values: Sequence[ir.Value]) -> ir.Value:
    return op.Concat(*values, axis=0) if len(values) > 1 else values[0]


def _average(
    op: Builder, role: str, sites: Sequence[NormSite], observed: ir.Value, momentum: float
) -> list[StateTensor]:
    initials = [site.parameters[role] for site in sites]
    inputs = [state_input(op.graph, f"{site.name}.{role}", i) for site, i in zip(sites, initials, strict=True)]
    running = _joined(op, inputs)
    average = op.Add(running, op.Mul(op.Sub(observed, running), momentum))
    split: Any = op.Split(average, [site.channels for site in sites], axis=0, outputs=len(sites))
    parts = split if isinstance(split, tuple) else (split,)
    made = []
    for value, initial, part in zip(inputs, initials, parts, strict=True):
        part.name = f"{value.name}.next"
        made.append(StateTensor(name=str(value.name), role="statistic", initial=initial, value=value, next=part))
    return made
