"""Optimizer steps as graphs: parameters, their gradients and the optimizer's state in, the next ones out.

All parameters are one flat vector inside: an Adam step is fifteen nodes, however many parameters there are.  The
formulas are those of PyTorch 2 (METHODS 0.3), bias correction and first-step rules included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.adapt import StateTensor, state_input
from ttac.passes.build import Builder

ROOM = "update"
Step = Callable[[Builder, ir.Value, ir.Value, Mapping[str, Any]], tuple[ir.Value, list[StateTensor]]]


def update_graph(
    parameters: Sequence[StateTensor],
    gradients: Sequence[str],
    settings: Mapping[str, Any],
    opset: int,
    *,
    anchor: Mapping[str, np.ndarray] | None = None,
) -> tuple[ir.Model, list[StateTensor]]:
    """The graph of one optimizer step.

    Its inputs are `<parameter>` and the value names `gradients`, in pairs, then the optimizer's state; its outputs
    `<parameter>.next` and `<state>.next`.  Returns the model and all state it moves, initial values included.

    Args:
        anchor: Fisher information by parameter, for settings["fisher"] * sum F (p - p0)^2 in the loss.
        settings: "optimizer" ("adam" or "sgd") and what it reads: lr, beta1, beta2, eps; momentum, nesterov;
            weight_decay.
    """
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="update")
    values = [state_input(graph, p.name, p.initial) for p in parameters]
    slopes = [state_input(graph, g, p.initial) for p, g in zip(parameters, gradients, strict=True)]
    op = Builder(graph, ROOM, opset)
    with op.at("update"):
        flat, slope = flatten(op, values), flatten(op, slopes)
        if decay := float(settings.get("weight_decay", 0.0)):
            slope = op.Add(slope, op.Mul(flat, decay))
        if anchor:
            slope = op.Add(slope, pull_back(op, flat, parameters, anchor, float(settings["fisher"])))
        following, state = OPTIMIZERS[settings["optimizer"]](op, flat, slope, settings)
        moved = unflatten(op, following, parameters)
    moved_parameters = [
        StateTensor(p.name, p.role, p.initial, value, after)
        for p, value, after in zip(parameters, values, moved, strict=True)
    ]
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


def adam(
    op: Builder, flat: ir.Value, slope: ir.Value, settings: Mapping[str, Any]
) -> tuple[ir.Value, list[StateTensor]]:
    """m <- b1 m + (1-b1) g,  v <- b2 v + (1-b2) g^2,  p <- p - lr (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)."""
    first, second = float(settings["beta1"]), float(settings["beta2"])
    m, v = _memory(op, flat, "adam.m"), _memory(op, flat, "adam.v")
    t = state_input(op.graph, "adam.step", np.zeros((), np.float32))
    after_t = op.Add(t, 1.0)
    after_m = op.Add(op.Mul(m, first), op.Mul(slope, 1.0 - first))
    after_v = op.Add(op.Mul(v, second), op.Mul(op.Mul(slope, slope), 1.0 - second))
    step = op.Div(float(settings["lr"]), op.Sub(1.0, op.Pow(op.constant(np.array(first, np.float32)), after_t)))
    root = op.Sqrt(op.Sub(1.0, op.Pow(op.constant(np.array(second, np.float32)), after_t)))
    scaled = op.Add(op.Div(op.Sqrt(after_v), root), float(settings["eps"]))
    following = op.Sub(flat, op.Mul(op.Div(after_m, scaled), step))
    zeros = np.zeros(_length(flat), np.float32)
    return following, [
        StateTensor("adam.m", "optimizer", zeros, m, after_m),
        StateTensor("adam.v", "optimizer", zeros, v, after_v),
        StateTensor("adam.step", "counter", np.zeros((), np.float32), t, after_t),
    ]


def sgd(
    op: Builder, flat: ir.Value, slope: ir.Value, settings: Mapping[str, Any]
) -> tuple[ir.Value, list[StateTensor]]:
    """v <- mu v + g (v = g at the first step, as v starts at 0);  p <- p - lr (g + mu v if nesterov, else v)."""
    momentum = float(settings["momentum"])
    if not momentum:
        return op.Sub(flat, op.Mul(slope, float(settings["lr"]))), []
    v = _memory(op, flat, "sgd.v")
    after_v = op.Add(op.Mul(v, momentum), slope)
    direction = op.Add(slope, op.Mul(after_v, momentum)) if settings["nesterov"] else after_v
    following = op.Sub(flat, op.Mul(direction, float(settings["lr"])))
    return following, [StateTensor("sgd.v", "optimizer", np.zeros(_length(flat), np.float32), v, after_v)]


OPTIMIZERS: dict[str, Step] = {"adam": adam, "sgd": sgd}


def _memory(op: Builder, flat: ir.Value, name: str) -> ir.Value:
    return state_input(op.graph, name, np.zeros(_length(flat), np.float32))


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
