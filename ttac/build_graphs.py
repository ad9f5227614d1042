"""From the joint graph to the graphs of a bundle: plan the residuals, cut, add the method's own graphs, lower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ttac.bundle_writer import Compiled
from ttac.method_facts import method_graphs
from ttac.options import CompileOptions
from ttac.passes.adapt.adapt_norms import Adaptation
from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.joint import Joint
from ttac.passes.lower.fed_weights import feed_pointwise
from ttac.passes.lower.gradient_dependencies import wait_for_gradients
from ttac.passes.lower.lower import lower
from ttac.passes.lower.stages import split_backward
from ttac.passes.norms.norm_sites import NormSite
from ttac.passes.partition.partition import partition
from ttac.passes.plan.budget import plan_within
from ttac.passes.plan.decisions import Plan
from ttac.passes.plan.keep_ratios import Layer, keep_a_share, keep_shares, layers_of
from ttac.passes.plan.moved_state import copy_moved_state
from ttac.passes.plan.plan import plan_activations
from ttac.passes.quantize.modules import Int8Modules
from ttac.reports.progress import Rooms
from ttac.spec import Target

STAGES = 6
"""Graphs that the backward is cut into at most; each run costs a fraction of a millisecond."""


LEAST_KEPT = 0.05
"""A share of each layer's input below which a budget is not worth meeting: little would be learned from it."""


@dataclass(frozen=True)
class Parts:
    """What the rooms before made: the plain graph, its sites, the joint graph and what the method starts from."""

    request: CompileOptions
    infer: ir.Model
    sites: list[NormSite]
    adaptation: Adaptation
    joint: Joint
    constants: Mapping[str, np.ndarray]
    head: Head | None = None
    quantized: Int8Modules | None = None

    def keeping(self, factor: float) -> Parts:
        """The same with `factor` times the keep ratio, for a method that has one."""
        keep, settings = self.request.method.keep, self.request.settings
        assert keep is not None
        less = {**settings, keep.option: round(float(settings[keep.option]) * factor, 4)}
        return replace(self, request=replace(self.request, settings=less))


@dataclass(frozen=True)
class Planned:
    """A plan, the layers that keep a share of their input only, and whether a smaller plan is possible."""

    plan: Plan
    layers: Sequence[Layer] = ()
    more: bool = False


def plan_residuals(parts: Parts, goal: int | None) -> Planned:
    """What crosses from the forward to the backward, with a peak of at most `goal` bytes as far as that can be told.

    For a method that keeps a share of each layer's input, that share is what can be made smaller (`Parts.keeping`).
    """
    asked, joint = parts.request, parts.joint
    graph = joint.model.graph
    moved = [tensor.value for tensor in parts.adaptation.tracked if tensor.next is not None]
    copy_moved_state(joint.model, joint.backward, moved)
    free = [value for value in graph.inputs if value not in moved]
    keep = asked.method.keep
    layers = layers_of(joint) if keep else []
    if keep and layers:
        ratio = float(asked.settings[keep.option])
        decide = keep_a_share(joint, layers, keep.codec(asked.settings), ratio, asked.batch)
        shares = keep_shares(layers, ratio, moves=keep.measured)
        plan = plan_activations(graph, joint.backward, free, asked.batch, decide, shares, tight=True)
        return Planned(plan, layers, more=ratio > LEAST_KEPT)
    if goal is None:
        return Planned(plan_activations(graph, joint.backward, free, asked.batch))
    plan, more = plan_within(graph, joint.backward, free, asked.batch, goal)
    return Planned(plan, more=more)


def build_graphs(parts: Parts, planned: Planned, rooms: Rooms) -> Compiled:
    """Partition, add the method's own graphs, and lower every graph for the target; `parts` stay as they are."""
    asked, joint, adaptation = parts.request, parts.joint, parts.adaptation
    plan, infer = planned.plan, parts.infer.clone()
    tracked = [tensor.next for tensor in adaptation.tracked if tensor.next is not None]
    outputs = [*(joint.loss.outputs if joint.loss else []), *tracked]
    halves = partition(joint.model, [joint.logits, *outputs], joint.gradients, plan)
    graphs = {"infer": infer, "forward": halves.forward}
    exact = {} if plan.is_exact else exact_graphs(joint, outputs, plan, asked.target)
    moves = {"forward": {str(t.next.name): t.name for t in adaptation.tracked if t.next is not None}}
    stats = {"forward": {str(value.name): name for name, value in joint.loss.stats.items()} if joint.loss else {}}
    state = list(adaptation.tracked)
    if halves.backward is not None:
        stages = staged(halves.backward, halves.residuals, joint, asked)
        steps = method_graphs(asked, joint, parts.constants, planned.layers)
        graphs |= {**named_stages(stages), **{name: step.model for name, step in steps.items()}}
        moves |= {name: step.moves for name, step in steps.items()}
        stats |= {name: dict(step.stats) for name, step in steps.items()}
        state += {tensor.name: tensor for step in steps.values() for tensor in step.state}.values()
    for name, model in graphs.items():
        if not name.startswith("backward"):
            lower(model, asked.target)
    adapting = [model for name, model in graphs.items() if name != "infer"]
    fed = feed_pointwise(adapting, observed=halves.backward is None)
    rooms.lowered(graphs)
    return Compiled(
        asked,
        graphs,
        sites=parts.sites,
        statistics=adaptation.statistics,
        state=[replace(tensor, next=None) for tensor in state],
        moves=moves,
        stats=stats,
        fed=fed,
        plan=plan,
        exact=exact,
        head=parts.head,
        quantized=parts.quantized,
    )


def staged(backward: ir.Model, residuals: Sequence[str], joint: Joint, asked: CompileOptions) -> list[ir.Model]:
    """The backward as the engine runs it: in standard operators, in stages, and in an order that it keeps to."""
    lower(backward, asked.target)
    stages = split_backward(backward, residuals, asked.batch, STAGES)
    given = {*residuals, *(str(value.name) for value in joint.model.graph.inputs)}
    for model in stages:
        wait_for_gradients(model, given, asked.batch)
    return stages


def exact_graphs(joint: Joint, outputs: list[ir.Value], plan: Plan, target: Target) -> dict[str, ir.Model]:
    """Forward and backward with all residuals kept as they are, to compare with."""
    halves = partition(joint.model, [joint.logits, *outputs], joint.gradients, plan.exactly())
    assert halves.backward is not None
    return {"forward": lower(halves.forward, target), "backward": lower(halves.backward, target)}


def named_stages(stages: list[ir.Model]) -> dict[str, ir.Model]:
    """The stages of the backward by the names of their files."""
    names = ["backward"] if len(stages) == 1 else [f"backward-{i}" for i in range(1, len(stages) + 1)]
    return dict(zip(names, stages, strict=True))
