"""Optimizer steps as graphs: parameters, their gradients and the optimizer's state in, the next ones out.

Small parameters are one flat vector inside: an Adam step on a hundred norms is fifteen nodes.  Large ones go one by
one, so that what a step computes in between is never as large as the model; and where they are many, in graphs of
their own, so that their next state need not exist as a whole either (`deferred` in `docs/bundle.md`).  The formulas are
those of PyTorch 2 (METHODS 0.3), bias correction and first-step rules included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input

ROOM = "update"
LARGE = 64 * 1024
"""Elements from which on a parameter is stepped by itself."""
WORTH = 1024 * 1024
"""Elements of all large parameters from which on they get graphs of their own."""
COUNT = "adam.step"


@dataclass(frozen=True)
class Stepped:
    """What an optimizer steps: a vector, its gradient, a suffix for its memory's names, and the number of this step."""

    flat: ir.Value
    slope: ir.Value
    suffix: str = ""
    count: ir.Value | None = None


Step = Callable[[Builder, Stepped, Mapping[str, Any]], tuple[ir.Value, list[StateTensor]]]


Update = tuple[ir.Model, list[StateTensor]]
"""A graph, and all state it moves, initial values included."""


def update_graphs(
    parameters: Sequence[StateTensor],
    gradients: Sequence[str],
    settings: Mapping[str, Any],
    opset: int,
    *,
    anchor: Mapping[str, np.ndarray] | None = None,
) -> list[Update]:
    """One optimizer step as graphs that run in turn: all small parameters, then large ones, the largest alone.

    The first counts the step, and the others read its number; see `update_graph`.
    """
    paired = list(zip(parameters, gradients, strict=True))
    parts = [[pair for pair in paired if pair[0].initial.size < LARGE]]
    large = [pair for pair in paired if pair[0].initial.size >= LARGE]
    if sum(p.initial.size for p, _ in large) < WORTH:
        parts = [paired]
    else:
        parts = [part for part in [*parts, *_batches(large)] if part]
    return [
        update_graph([p for p, _ in part], [g for _, g in part], settings, opset, anchor=anchor, first=number == 0)
        for number, part in enumerate(parts)
    ]


def _batches(pairs: Sequence[tuple[StateTensor, str]]) -> list[list[tuple[StateTensor, str]]]:
    """The pairs in as few batches as their order allows, none of more elements than the largest parameter."""
    room = max(p.initial.size for p, _ in pairs)
    batches: list[list[tuple[StateTensor, str]]] = [[]]
    for pair in pairs:
        if sum(p.initial.size for p, _ in batches[-1]) + pair[0].initial.size > room:
            batches.append([])
        batches[-1].append(pair)
    return batches


def update_graph(
    parameters: Sequence[StateTensor],
    gradients: Sequence[str],
    settings: Mapping[str, Any],
    opset: int,
    *,
    anchor: Mapping[str, np.ndarray] | None = None,
    first: bool = True,
) -> Update:
    """The graph of one optimizer step.

    Its inputs are `<parameter>` and the value names `gradients`, in pairs, then the optimizer's state; its outputs
    `<parameter>.next` and `<state>.next`.  Returns the model and all state it moves, initial values included.

    Args:
        anchor: Fisher information by parameter, for settings["fisher"] * sum F (p - p0)^2 in the loss.
        settings: "optimizer" ("adam" or "sgd") and what it reads: lr, beta1, beta2, eps; momentum, nesterov;
            weight_decay.
        first: whether it counts Adam's steps; else it reads the number as `adam.step.next`, which another graph made.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="update")
    values = [state_input(graph, p.name, p.initial) for p in parameters]
    slopes = [state_input(graph, g, p.initial) for p, g in zip(parameters, gradients, strict=True)]
    op = Builder(graph, ROOM, opset)
    moved_parameters: list[StateTensor] = []
    state: list[StateTensor] = []
    zero = np.zeros((), np.float32)
    count = after = None
    if settings["optimizer"] == "adam":
        count = state_input(graph, COUNT if first else f"{COUNT}.next", zero)
        with op.at("update"):
            after = op.Add(count, 1.0) if first else count
    for group, suffix in groups(parameters):
        members = [parameters[i] for i in group]
        with op.at("update"):
            flat, slope = flatten(op, [values[i] for i in group]), flatten(op, [slopes[i] for i in group])
            if decay := float(settings.get("weight_decay", 0.0)):
                slope = op.Add(slope, op.Mul(flat, decay))
            if anchor:
                slope = op.Add(slope, pull_back(op, flat, members, anchor, float(settings["fisher"])))
            following, memory = OPTIMIZERS[settings["optimizer"]](op, Stepped(flat, slope, suffix, after), settings)
            moved = unflatten(op, following, members)
        moved_parameters += [replace(p, value=values[i], next=m) for p, i, m in zip(members, group, moved, strict=True)]
        state += memory
    if first and count is not None:
        state.append(StateTensor(name=COUNT, role="counter", initial=zero, value=count, next=after))
    for tensor in [*moved_parameters, *state]:
        assert tensor.next is not None
        tensor.next.name = f"{tensor.name}.next"
        graph.outputs.append(tensor.next)
    return ir.Model(graph, ir_version=8), [*moved_parameters, *state]


def pull_back(
    op: Builder, flat: ir.Value, parameters: Sequence[StateTensor], anchor: Mapping[str, np.ndarray], weight: float
) -> ir.Value:
    """The gradient of weight * sum F (p - p0)^2, which holds on to what the source model needs (EATA, eq. 8)."""
    fisher = np.concatenate([2 * weight * anchor[p.name].reshape(-1) for p in parameters]).astype(np.float32)
    source = np.concatenate([p.initial.reshape(-1) for p in parameters])
    return op.Mul(op.Sub(flat, source), fisher)


def groups(parameters: Sequence[StateTensor]) -> list[tuple[list[int], str]]:
    """Positions of parameters that are stepped together, and what tells their memory apart; large ones are alone."""
    small = [i for i, p in enumerate(parameters) if p.initial.size < LARGE]
    alone = [([i], f"/{p.name}") for i, p in enumerate(parameters) if p.initial.size >= LARGE]
    return [*([(small, "")] if small else []), *alone]


def adam(op: Builder, of: Stepped, settings: Mapping[str, Any]) -> tuple[ir.Value, list[StateTensor]]:
    """m <- b1 m + (1-b1) g,  v <- b2 v + (1-b2) g^2,  p <- p - lr (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)."""
    first, second = float(settings["beta1"]), float(settings["beta2"])
    m, v = _memory(op, of, "adam.m"), _memory(op, of, "adam.v")
    after_m = op.Add(op.Mul(m, first), op.Mul(of.slope, 1.0 - first))
    after_v = op.Add(op.Mul(v, second), op.Mul(op.Mul(of.slope, of.slope), 1.0 - second))
    step = op.Div(float(settings["lr"]), op.Sub(1.0, op.Pow(op.constant(np.array(first, np.float32)), of.count)))
    root = op.Sqrt(op.Sub(1.0, op.Pow(op.constant(np.array(second, np.float32)), of.count)))
    scaled = op.Add(op.Div(op.Sqrt(after_v), root), float(settings["eps"]))
    following = op.Sub(of.flat, op.Mul(op.Div(after_m, scaled), step))
    return following, [_remembered(of, m, after_m), _remembered(of, v, after_v)]


def sgd(op: Builder, of: Stepped, settings: Mapping[str, Any]) -> tuple[ir.Value, list[StateTensor]]:
    """v <- mu v + g (v = g at the first step, as v starts at 0);  p <- p - lr (g + mu v if nesterov, else v)."""
    momentum = float(settings["momentum"])
    if not momentum:
        return op.Sub(of.flat, op.Mul(of.slope, float(settings["lr"]))), []
    v = _memory(op, of, "sgd.v")
    after_v = op.Add(op.Mul(v, momentum), of.slope)
    direction = op.Add(of.slope, op.Mul(after_v, momentum)) if settings["nesterov"] else after_v
    following = op.Sub(of.flat, op.Mul(direction, float(settings["lr"])))
    return following, [_remembered(of, v, after_v)]


OPTIMIZERS: dict[str, Step] = {"adam": adam, "sgd": sgd}


def _memory(op: Builder, of: Stepped, name: str) -> ir.Value:
    return state_input(op.graph, name + of.suffix, np.zeros(_length(of.flat), np.float32))


def _remembered(of: Stepped, memory: ir.Value, after: ir.Value) -> StateTensor:
    return StateTensor(
        name=str(memory.name),
        role="optimizer",
        initial=np.zeros(_length(of.flat), np.float32),
        value=memory,
        next=after,
    )


def _length(flat: ir.Value) -> int:
    assert flat.shape is not None
    return int(flat.shape[0])  # type: ignore[arg-type]


def flatten(op: Builder, values: Sequence[ir.Value]) -> ir.Value:
    """The tensors one after the other, as one vector."""
    flat = [v if v.shape is not None and len(v.shape) == 1 else op.Reshape(v, [-1]) for v in values]
    return op.Concat(*flat, axis=0) if len(flat) > 1 else flat[0]


def unflatten(op: Builder, flat: ir.Value, parameters: Sequence[StateTensor]) -> list[ir.Value]:
    """The parts of a vector that belong to the parameters, in their shapes."""
    split: Any = op.Split(flat, [p.initial.size for p in parameters], axis=0, outputs=len(parameters))
    parts = split if isinstance(split, tuple) else (split,)
    return [
        part if p.initial.ndim == 1 else op.Reshape(part, list(p.initial.shape))
        for part, p in zip(parts, parameters, strict=True)
    ]
