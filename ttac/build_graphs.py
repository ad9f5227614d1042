"""From the joint graph to the graphs of a bundle: plan the residuals, cut, add the method's own graphs, lower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ttac.bundle_content import BundleContent
from ttac.check_samples import moved_apart, of_norms
from ttac.compile_state import CompileState
from ttac.method_facts import correction_graph, estimate_graph, method_graphs
from ttac.passes.differentiate.joint import Joint
from ttac.passes.graph.keys import OPEN
from ttac.passes.graph.state import StateTensor
from ttac.passes.load.model_file import INPUTS
from ttac.passes.lower.fed_weights import make_fed_weights
from ttac.passes.lower.gradient_dependencies import add_gradient_dependencies
from ttac.passes.lower.lower import lower
from ttac.passes.lower.stages import split_backward
from ttac.passes.partition.partition import GraphHalves, partition
from ttac.passes.plan.budget import plan_within
from ttac.passes.plan.codecs import CODECS
from ttac.passes.plan.decisions import Plan
from ttac.passes.plan.keep_ratios import Layer, equal_ratios, keep_parts, layers_of, with_encoded
from ttac.passes.plan.plan import plan_activations
from ttac.passes.step_graphs.appended import append
from ttac.passes.step_graphs.check_set import CHECK
from ttac.passes.step_graphs.context import MethodGraph
from ttac.passes.step_graphs.guard import GUARD, kept_by
from ttac.passes.step_graphs.window import PREDICT, WINDOW, running_model, window
from ttac.program_writer import FORWARD, runs_forward_once, source_set
from ttac.reports.progress import RoomLog
from ttac.settings import is_guarded
from ttac.spec import SOURCE_SET

STAGES = 6
"""Largest number of stages of the backward; each run of a stage costs a fraction of a millisecond."""


LEAST_KEPT = 0.05
"""Keep ratio below which a budget is not worth meeting: the method would hardly learn."""


@dataclass(frozen=True)
class PlanChoice:
    """A plan, the layers whose input is kept in part, and whether a smaller plan exists."""

    plan: Plan
    layers: Sequence[Layer] = ()
    can_shrink: bool = False


def plan_residuals(state: CompileState, goal: int | None, log: RoomLog) -> PlanChoice:
    """Choose the residuals, for a planned peak of at most `goal` bytes as far as the plan can reach it.

    For a method with a keep ratio, the ratio is the means to a smaller plan (`CompileState.keeping`).
    """
    choice = _plan_choice(state, goal)
    log.plan(choice.plan)
    return choice


def _plan_choice(state: CompileState, goal: int | None) -> PlanChoice:
    options, joint = state.options, state.joint
    assert joint is not None
    moved = {tensor.name for tensor in state.adaptation.tracked if tensor.next is not None}
    graph = joint.model.graph
    free = [value for value in graph.inputs if value.name not in moved]
    keep = options.method.keep
    layers = layers_of(joint) if keep else []
    name = keep.codec(options.settings) if keep else ""
    if keep and layers and name:
        codec, ratio = CODECS[name], float(options.settings[keep.option])
        decide = keep_parts(joint, layers, codec, ratio, options.batch)
        ratios = equal_ratios(layers, codec, ratio, moves=keep.measured)
        plan = plan_activations(graph, joint.backward, free, options.batch, decide, ratios, tight=True)
        return PlanChoice(plan, with_encoded(layers, plan), can_shrink=ratio > LEAST_KEPT)
    if goal is None:
        return PlanChoice(plan_activations(graph, joint.backward, free, options.batch))
    plan, more = plan_within(graph, joint.backward, free, options.batch, goal)
    return PlanChoice(plan, can_shrink=more)


@dataclass(frozen=True, kw_only=True)
class WholeGraphs:
    """The lowered graphs of a bundle, with the backward in one piece.

    Attributes:
        graphs: name -> graph, among them `infer`, `forward` and, for a method with gradients, `backward`.
        residuals: names of the values that cross from the forward to the backward.
        steps: the method's own graphs by name; under `forward` the guard, where that graph contains it.
    """

    graphs: Mapping[str, ir.Model]
    residuals: Sequence[str]
    steps: Mapping[str, MethodGraph]


def build_graphs(state: CompileState, choice: PlanChoice, log: RoomLog) -> BundleContent:
    """Cut a copy of the joint graph, add the method's own graphs, and lower every graph for the target."""
    joint, whole = state.joint, whole_graphs(state, choice)
    assert joint is not None
    graphs, fed_weights = finished_graphs(state, whole.graphs, whole.residuals)
    fed_weights |= source_set(state.options.method.program, joint.parameters) | _check_statistics(state, whole.steps)
    log.lower(graphs)
    return BundleContent(
        state=state,
        joint=joint,
        plan=choice.plan,
        graphs=graphs,
        exact={} if choice.plan.is_exact else exact_graphs(state, joint, choice.plan),
        tensors=state_tensors(state, whole.steps),
        moves=moves_of(state, whole.steps),
        stats=stats_of(joint, whole.steps),
        fed_weights=fed_weights,
    )


def _check_statistics(state: CompileState, steps: Mapping[str, MethodGraph]) -> dict[str, np.ndarray]:
    """The compiled statistics of norms, as weights for the check; none if predictions do not depend on them."""
    if CHECK not in steps:
        return {}
    moved = kept_by(steps[GUARD if GUARD in steps else FORWARD].moves)
    moved |= {tensor.name for tensor in moved_apart(state)}
    return {f"{SOURCE_SET}.{tensor.name}": tensor.initial for tensor in of_norms(state) if tensor.name in moved}


def whole_graphs(state: CompileState, choice: PlanChoice) -> WholeGraphs:
    """Cut a copy of the joint graph, add the method's own graphs, and lower each graph."""
    joint, infer = state.joint, state.infer
    assert joint is not None and infer is not None
    halves = cut(state, joint, choice.plan)
    graphs = {"infer": in_file_order(infer, state), "forward": halves.forward}
    steps = method_graphs(state, choice.layers) | correction_graph(state) | estimate_graph(state)
    graphs |= {"backward": halves.backward} if halves.backward is not None else {}
    if GUARD in steps and runs_forward_once(state.options.method.program):
        steps[FORWARD] = append(halves.forward, steps.pop(GUARD))
    graphs |= {name: step.model for name, step in steps.items()}
    window = _window(state)
    graphs, steps = {**graphs, **window[0]}, {**steps, **window[1]}
    for model in graphs.values():
        model.graph.meta[OPEN] = state.options.max_shape is not None
        lower(model, state.options.target)
    return WholeGraphs(graphs=graphs, residuals=halves.residuals, steps=steps)


def _window(state: CompileState) -> tuple[dict[str, ir.Model], dict[str, MethodGraph]]:
    """The graphs of the setting `window`, and those of them that move state.

    A method that predicts with running averages has the graph `predict` without the setting.
    """
    size, joint, infer = state.options.settings.get(WINDOW), state.joint, state.infer
    if not size and not state.options.method.running:
        return {}, {}
    assert joint is not None and infer is not None
    trained = {tensor.name for tensor in joint.parameters}
    # A window's step predicts few samples, too few to show where they belong.
    returns = not size and is_guarded(state.options.settings)
    running = running_model(in_file_order(infer, state), state.sites, trained, returns=returns)
    if not size:
        return {PREDICT: running}, {}
    graph = window(infer.graph.inputs, size, infer.opset_imports[""])
    return {WINDOW: graph.model, PREDICT: running}, {WINDOW: graph}


def finished_graphs(
    state: CompileState, whole: Mapping[str, ir.Model], residuals: Sequence[str]
) -> tuple[dict[str, ir.Model], dict[str, np.ndarray]]:
    """The graphs with the backward in stages, and the weights that are their inputs."""
    graphs: dict[str, ir.Model] = {}
    for name, model in whole.items():
        graphs |= backward_stages(state, model, residuals) if name == "backward" else {name: model}
    adapting = [model for name, model in graphs.items() if name != "infer"]
    return graphs, make_fed_weights(adapting, observed="backward" not in whole)


def cut(state: CompileState, joint: Joint, plan: Plan) -> GraphHalves:
    """Forward and backward of the joint graph.

    The forward gives the model's outputs, the loss outputs and the tracked state.
    """
    tracked = [tensor.next for tensor in state.adaptation.tracked if tensor.next is not None]
    outputs = [joint.logits, *joint.model.graph.outputs, *(joint.loss.outputs if joint.loss else [])]
    return partition(joint.model, [*outputs, *tracked], joint.gradients, plan)


def in_file_order(model: ir.Model, state: CompileState) -> ir.Model:
    """Return a copy of `model` whose inputs and outputs are those of the file, in the order of the file."""
    copy = model.clone()
    named = {str(value.name): value for value in copy.graph.outputs}
    copy.graph.outputs[:] = [named[name] for name in state.outputs]
    order = list(state.source.meta[INPUTS])
    copy.graph.inputs[:] = sorted(copy.graph.inputs, key=lambda value: order.index(str(value.name)))
    return copy


def backward_stages(state: CompileState, backward: ir.Model, residuals: Sequence[str]) -> dict[str, ir.Model]:
    """The stages of the lowered backward by file stem, in an order that the engine keeps."""
    batch, joint = state.options.batch, state.joint
    assert joint is not None
    stages = split_backward(backward, residuals, batch, STAGES)
    available = {*residuals, *(str(value.name) for value in joint.model.graph.inputs)}
    for model in stages:
        add_gradient_dependencies(model, available, batch)
    names = ["backward"] if len(stages) == 1 else [f"backward-{i}" for i in range(1, len(stages) + 1)]
    return dict(zip(names, stages, strict=True))


def exact_graphs(state: CompileState, joint: Joint, plan: Plan) -> dict[str, ir.Model]:
    """Forward and backward with dense residuals, to compare with."""
    halves, target = cut(state, joint, plan.exactly()), state.options.target
    assert halves.backward is not None
    return {"forward": lower(halves.forward, target), "backward": lower(halves.backward, target)}


def state_tensors(state: CompileState, steps: Mapping[str, MethodGraph]) -> list[StateTensor]:
    """The state of the bundle: statistics that the forward tracks, and the state of the method's graphs."""
    moved = {tensor.name: tensor for step in steps.values() for tensor in step.state}
    moved = {tensor.name: tensor for tensor in state.adaptation.tracked} | moved
    return [replace(tensor, next=None) for tensor in moved.values()]


def moves_of(state: CompileState, steps: Mapping[str, MethodGraph]) -> dict[str, Mapping[str, str]]:
    """Graph -> graph output -> the state tensor that takes its value."""
    elsewhere = {tensor.name for step in steps.values() for tensor in step.state}
    tracked = {output: name for output, name in state.adaptation.moves.items() if name not in elsewhere}
    moves = {name: step.moves for name, step in steps.items()}
    return {**moves, FORWARD: {**tracked, **moves.get(FORWARD, {})}}


def stats_of(joint: Joint, steps: Mapping[str, MethodGraph]) -> dict[str, Mapping[str, str]]:
    """Graph -> graph output -> its name in `adapter.stats`."""
    reported = {str(value.name): name for name, value in joint.loss.stats.items()} if joint.loss else {}
    stats = {name: dict(step.stats) for name, step in steps.items()}
    return {**stats, FORWARD: {**reported, **stats.get(FORWARD, {})}}
