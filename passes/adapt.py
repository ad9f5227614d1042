"""Rewrite recognised norms into adaptive ones: which statistics they normalise with, and whose scale and bias train.

Every adapted site owns its tensors: exporters merge initializers with equal bytes, so sites are untied here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.build import LAYER, Builder
from ttac.passes.norms import NormSite

ROOM = "adapt"
BATCH_SIZE = "batch.size"
# Above this ratio of mean^2 to variance, E[x^2] - E[x]^2 loses more than a decimal digit and a half in float32.
CANCELLATION = 30.0


@dataclass(frozen=True)
class StateTensor:
    """A tensor that survives a step.

    `value` is the graph input that holds it; `next` the graph value it becomes when the step commits, None while
    another graph (the update) computes it.
    """

    name: str
    role: str
    initial: np.ndarray
    value: ir.Value
    next: ir.Value | None = None


@dataclass(frozen=True)
class Adaptation:
    """What the adapt room did: the sites in graph order, the state it made, and the parameters that train."""

    sites: tuple[NormSite, ...] = ()
    statistics: str = "source"
    parameters: tuple[StateTensor, ...] = ()
    tracked: tuple[StateTensor, ...] = ()
    trained: frozenset[str] = field(default_factory=frozenset)

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
    model: ir.Model, sites: Sequence[NormSite], statistics: str, settings: Mapping[str, Any], *, trains: bool
) -> Adaptation:
    """Rewrite `sites` of `model` in place: batch norms normalise with `statistics`, the others stay as they are.

    With `trains`, scale and bias of every site that is `trained` become state.

    Args:
        statistics: "source", "batch", "blend" (settings["prior"] pseudo-samples) or "ema", whose momentum is
            settings["statistics_momentum"].
    """
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    statistics = statistics if any(site.kind == "batch" for site in sites) else "source"
    batch = batch_size(op, model.graph) if statistics != "source" else None
    parameters: list[StateTensor] = []
    tracked: list[StateTensor] = []
    observed: list[tuple[NormSite, Moments]] = []
    for site in sites:
        with op.at(site.name, before=site.node):
            if trains and site.trained:
                parameters += untie(op, site)
            if batch is not None and site.kind == "batch":
                moments = observe(op, site)
                tracked += POLICIES[statistics](op, site, moments, settings, batch)
                observed.append((site, moments))
    if observed and not tracked:
        assert batch is not None
        tracked = track(op, observed, batch, settings.get("statistics_momentum", 0.1))
    names = frozenset(site.name for site in sites if trains and site.trained)
    return Adaptation(tuple(sites), statistics, tuple(parameters), tuple(tracked), names)


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
        made.append(StateTensor(str(value.name), "parameter", initial, value))
    return made


def state_input(graph: ir.Graph, name: str, initial: np.ndarray) -> ir.Value:
    """A new graph input for a state tensor; an initializer of that name, which other nodes may read, gets another."""
    other = name
    while other in graph.initializers:
        other = f"{other}.source"
    if other != name:
        source = graph.initializers.pop(name)
        source.name = other
        graph.register_initializer(source)
    value = ir.val(name, dtype=ir.DataType.from_numpy(initial.dtype), shape=initial.shape)
    graph.inputs.append(value)
    return value


def constant(node: ir.Node, position: int) -> np.ndarray:
    """The constant input of `node` at `position`, float32."""
    value = node.inputs[position]
    assert value is not None and value.const_value is not None
    return np.array(value.const_value.numpy(), np.float32)


def observe(op: Builder, site: NormSite) -> Moments:
    """Batch mean and biased variance of the site's input, free of cancellation.

    E[x^2] - E[x]^2 needs a nearly centred x.  Behind a Conv of its own, the source mean moves into the Conv's bias at
    no cost; elsewhere x is shifted only where the source statistics say that it matters.
    """
    mean, var = constant(site.node, 3), constant(site.node, 4)
    x = site.node.inputs[0]
    assert x is not None
    if centre_producer(op, site, mean):
        shift = mean
    elif float(np.max(mean**2 / (var + site.eps), initial=0.0)) > CANCELLATION:
        shape = (1, len(mean)) + (1,) * (len(x.shape or ()) - 2)
        x, shift = op.Sub(x, mean.reshape(shape)), mean
    else:
        shift = np.zeros_like(mean)
    site.node.replace_input_with(0, x)
    found_mean, found_var = op.Moments(x)
    return Moments(found_mean, found_var, shift)


def centre_producer(op: Builder, site: NormSite, mean: np.ndarray) -> bool:
    """Subtract the source mean in the bias of the Conv that only this site reads; False if there is none."""
    x = site.node.inputs[0]
    conv = x.producer() if x is not None else None
    if x is None or conv is None or conv.op_type != "Conv" or len(x.uses()) != 1 or x.is_graph_output():
        return False
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    if bias is not None and bias.const_value is None:
        return False
    old = bias.const_value.numpy() if bias is not None and bias.const_value is not None else np.zeros_like(mean)
    conv.resize_inputs(3)
    conv.replace_input_with(2, op.constant((old - mean).astype(mean.dtype)))
    return True


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
        made.append(StateTensor(str(running.name), "statistic", initial, running, following))
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
        made.append(StateTensor(str(value.name), "statistic", initial, value, part))
    return made
