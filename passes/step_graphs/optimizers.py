"""Optimizer steps as graphs: parameters, their gradients and the optimizer's state in, the next ones out.

Small parameters are one flat vector inside: an Adam step on a hundred norms is fifteen nodes.  Large parameters are
stepped one by one, so that no intermediate value is as large as the model.  Many large parameters get further graphs,
so that their next state never exists as a whole (`deferred` in `docs/bundle.md`).  The formulas are those of PyTorch 2,
bias correction and first-step rules included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph
from ttac.passes.step_graphs.guard import bounded, drift_stats

LARGE_ELEMENTS = 64 * 1024
"""Elements from which on a parameter is stepped by itself."""
SEPARATE_ELEMENTS = 1024 * 1024
"""Elements of all large parameters from which on large parameters get further graphs."""
COUNT = "adam.step"


@dataclass(frozen=True)
class FlatParameters:
    """Parameters as one vector, its gradient, a suffix for the names of its memory, and the number of this step."""

    flat: ir.Value
    gradient: ir.Value
    suffix: str = ""
    count: ir.Value | None = None


@dataclass(frozen=True)
class Anchor:
    """The term weight * sum F (p - p0)^2 of a loss, which holds parameters to the source.

    `information` is F by parameter, in the parameter's shape; p0 is the parameter's initial value.
    """

    information: Mapping[str, np.ndarray]
    weight: float

    def pull(self, op: Builder, flat: ir.Value, parameters: Sequence[StateTensor]) -> ir.Value:
        """The gradient of the term, as a vector like `flat`."""
        each = [2 * self.weight * self.information[p.name].reshape(-1) for p in parameters]
        source = np.concatenate([p.initial.reshape(-1) for p in parameters])
        return op.Mul(op.Sub(flat, source), np.concatenate(each).astype(np.float32))


AfterStep = Callable[[Builder, ir.Value, Sequence[StateTensor]], tuple[ir.Value, list[StateTensor]]]
"""`(op, flat, members) -> (flat, state)`: the final vector of the members after their step, and further moved state."""

Step = Callable[[Builder, FlatParameters, Mapping[str, Any]], tuple[ir.Value, list[StateTensor]]]


def update(
    context: Context,
    gradients: Sequence[str] | None = None,
    anchor: Anchor | None = None,
    after: AfterStep | None = None,
    rates: Mapping[str, float] | None = None,
) -> MethodGraph:
    """One step of the optimizer that the settings name, with the backward's gradients or others of their shapes.

    `after` changes each vector of parameters once more; `rates` are the learning rates of tensors with their own.
    """
    names = context.gradients if gradients is None else gradients
    first, *large = update_graphs(
        context.parameters, names, context.settings, context.opset, anchor=anchor, after=after, rates=rates
    )
    return replace(first, stats=drift_stats(first.model), more=tuple(large))


def update_graphs(
    parameters: Sequence[StateTensor],
    gradients: Sequence[str],
    settings: Mapping[str, Any],
    opset: int,
    *,
    anchor: Anchor | None = None,
    after: AfterStep | None = None,
    rates: Mapping[str, float] | None = None,
) -> list[MethodGraph]:
    """One optimizer step as graphs that run in turn: all small parameters, then large ones, the largest alone.

    The first graph counts the step, and the others read its number; see `update_graph`.
    """
    paired = list(zip(parameters, gradients, strict=True))
    parts = [[pair for pair in paired if pair[0].initial.size < LARGE_ELEMENTS]]
    large = [pair for pair in paired if pair[0].initial.size >= LARGE_ELEMENTS]
    if sum(p.initial.size for p, _ in large) < SEPARATE_ELEMENTS:
        parts = [paired]
    else:
        parts = [part for part in [*parts, *_batches(large)] if part]
    return [
        update_graph(
            [p for p, _ in part],
            [g for _, g in part],
            settings,
            opset,
            anchor=anchor,
            first=number == 0,
            after=after,
            rates=rates,
        )
        for number, part in enumerate(parts)
    ]


def _batches(pairs: Sequence[tuple[StateTensor, str]]) -> list[list[tuple[StateTensor, str]]]:
    """The pairs in as few batches as their order allows, none of more elements than the largest parameter."""
    limit = max(p.initial.size for p, _ in pairs)
    batches: list[list[tuple[StateTensor, str]]] = [[]]
    for pair in pairs:
        if sum(p.initial.size for p, _ in batches[-1]) + pair[0].initial.size > limit:
            batches.append([])
        batches[-1].append(pair)
    return batches


def update_graph(
    parameters: Sequence[StateTensor],
    gradients: Sequence[str],
    settings: Mapping[str, Any],
    opset: int,
    *,
    anchor: Anchor | None = None,
    first: bool = True,
    after: AfterStep | None = None,
    rates: Mapping[str, float] | None = None,
) -> MethodGraph:
    """The graph of one optimizer step.

    It reads `<parameter>` and the values `gradients`, in pairs, and gives `<parameter>.next` and `<state>.next`.

    Args:
        settings: "optimizer" ("adam" or "sgd") and its options: lr, beta1, beta2, eps; momentum, nesterov;
            weight_decay.
        first: whether the graph counts Adam's steps; else it reads the number as `adam.step.next` from another graph.
        after: a further change of each vector of parameters after its step.
        rates: learning rates of tensors that are stepped alone, in place of the settings'.
    """
    op = new_graph("update", opset)
    values = [state_input(op.graph, p.name, p.initial) for p in parameters]
    grads = [state_input(op.graph, g, p.initial) for p, g in zip(parameters, gradients, strict=True)]
    counter = _counter(op, settings, first=first)
    moved_parameters, state = list[StateTensor](), list[StateTensor]()
    for group, suffix in groups(parameters):
        members = [parameters[i] for i in group]
        with op.at("update"):
            flat, gradient = flatten(op, [values[i] for i in group]), flatten(op, [grads[i] for i in group])
            gradient = _regularised(op, flat, gradient, members, settings, anchor)
            of = FlatParameters(flat, gradient, suffix, counter.next if counter else None)
            following, memory = _stepped(op, of, members, settings, rates)
            following = bounded(op, ensembled(op, following, members, settings), members, settings)
            following, further = after(op, following, members) if after else (following, [])
            moved = unflatten(op, following, members)
        moved_parameters += [replace(p, value=values[i], next=m) for p, i, m in zip(members, group, moved, strict=True)]
        state += [*memory, *further]
    return finished(op, {}, [*moved_parameters, *state, *([counter] if first and counter else [])])


def _stepped(
    op: Builder,
    of: FlatParameters,
    members: Sequence[StateTensor],
    settings: Mapping[str, Any],
    rates: Mapping[str, float] | None,
) -> tuple[ir.Value, list[StateTensor]]:
    """The vector of the `members` after a step of the optimizer, with their own learning rate if there is one."""
    own = {**settings, "lr": (rates or {}).get(members[0].name, settings["lr"])}
    return OPTIMIZERS[settings["optimizer"]](op, of, own)


def ensembled(op: Builder, flat: ir.Value, members: Sequence[StateTensor], settings: Mapping[str, Any]) -> ir.Value:
    """The vector `flat` of the `members`, blended with the source: p <- (1 - w) p + w p0, w being `source_weight`.

    Weight ensembling (Marsden et al., "Universal test-time adaptation", WACV 2024, arXiv:2306.00650): the parameters
    never hold more than the last 1/w updates.
    """
    weight = float(settings.get("source_weight", 0.0))
    if not weight:
        return flat
    source = np.concatenate([p.initial.reshape(-1) for p in members])
    return op.Add(flat, op.Mul(op.Sub(source, flat), weight))


def _counter(op: Builder, settings: Mapping[str, Any], *, first: bool) -> StateTensor | None:
    """The state that counts Adam's steps, `next` being the number of this step; None for another optimizer."""
    if settings["optimizer"] != "adam":
        return None
    zero = np.zeros((), np.float32)
    count = state_input(op.graph, COUNT if first else f"{COUNT}.next", zero)
    with op.at("update"):
        return StateTensor(
            name=COUNT, role="counter", initial=zero, value=count, next=op.Add(count, 1.0) if first else count
        )


def _regularised(
    op: Builder,
    flat: ir.Value,
    gradient: ir.Value,
    parameters: Sequence[StateTensor],
    settings: Mapping[str, Any],
    anchor: Anchor | None,
) -> ir.Value:
    """The gradient with weight decay and the pull of the anchor."""
    if decay := float(settings.get("weight_decay", 0.0)):
        gradient = op.Add(gradient, op.Mul(flat, decay))
    return op.Add(gradient, anchor.pull(op, flat, parameters)) if anchor else gradient


def groups(parameters: Sequence[StateTensor]) -> list[tuple[list[int], str]]:
    """Positions of parameters that are stepped together, with the suffix of their memory.

    Large tensors are alone, and tensors that no prediction reads.
    """
    small = [i for i, p in enumerate(parameters) if p.initial.size < LARGE_ELEMENTS and p.role == "parameter"]
    alone = [([i], f"/{p.name}") for i, p in enumerate(parameters) if i not in small]
    return [*([(small, "")] if small else []), *alone]


def adam(op: Builder, of: FlatParameters, settings: Mapping[str, Any]) -> tuple[ir.Value, list[StateTensor]]:
    """m <- b1 m + (1-b1) g,  v <- b2 v + (1-b2) g^2,  p <- p - lr (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)."""
    first, second = float(settings["beta1"]), float(settings["beta2"])
    m, v = _memory(op, of, "adam.m"), _memory(op, of, "adam.v")
    after_m = op.Add(op.Mul(m, first), op.Mul(of.gradient, 1.0 - first))
    after_v = op.Add(op.Mul(v, second), op.Mul(op.Mul(of.gradient, of.gradient), 1.0 - second))
    step = op.Div(float(settings["lr"]), op.Sub(1.0, op.Pow(op.constant(np.array(first, np.float32)), of.count)))
    root = op.Sqrt(op.Sub(1.0, op.Pow(op.constant(np.array(second, np.float32)), of.count)))
    scaled = op.Add(op.Div(op.Sqrt(after_v), root), float(settings["eps"]))
    following = op.Sub(of.flat, op.Mul(op.Div(after_m, scaled), step))
    return following, [_memorised(of, m, after_m), _memorised(of, v, after_v)]


def sgd(op: Builder, of: FlatParameters, settings: Mapping[str, Any]) -> tuple[ir.Value, list[StateTensor]]:
    """v <- mu v + g (v = g at the first step, as v starts at 0);  p <- p - lr (g + mu v if nesterov, else v)."""
    momentum = float(settings["momentum"])
    if not momentum:
        return op.Sub(of.flat, op.Mul(of.gradient, float(settings["lr"]))), []
    v = _memory(op, of, "sgd.v")
    after_v = op.Add(op.Mul(v, momentum), of.gradient)
    direction = op.Add(of.gradient, op.Mul(after_v, momentum)) if settings["nesterov"] else after_v
    following = op.Sub(of.flat, op.Mul(direction, float(settings["lr"])))
    return following, [_memorised(of, v, after_v)]


OPTIMIZERS: dict[str, Step] = {"adam": adam, "sgd": sgd}


def _memory(op: Builder, of: FlatParameters, name: str) -> ir.Value:
    return state_input(op.graph, name + of.suffix, np.zeros(_length(of.flat), np.float32))


def _memorised(of: FlatParameters, memory: ir.Value, after: ir.Value) -> StateTensor:
    initial = np.zeros(_length(of.flat), np.float32)
    return StateTensor(name=str(memory.name), role="optimizer", initial=initial, value=memory, next=after)


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
