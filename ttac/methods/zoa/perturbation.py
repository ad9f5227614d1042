"""The random perturbation of ZOA's norms, and the step along the quotient of losses (arXiv:2508.02180)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ttac.methods.zoa import PERTURBED
from ttac.methods.zoa.domains import WEIGHTS, memory_state, read_memory, source_of
from ttac.methods.zoa.forward import LOSS
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.operators.random_numbers import Numbers, seeded
from ttac.passes.step_graphs import optimizers
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph, read, read_parameters
from ttac.passes.step_graphs.guard import bounded, drift_stats

SEED, BEFORE, DIRECTION, MIXING = "perturbation.seed", "loss.before", "perturbation", "perturbation.mixing"
TINY = 1e-8
"""Added to the magnitude of a quotient, as in Adam."""
FLOAT = int(ir.DataType.FLOAT)


def perturb(context: Context) -> MethodGraph:
    """The trained tensors moved by c*d, as `perturbed.<name>`, and the directions d.

    Elements of d are uniform in [-1, -0.5] and [0.5, 1].  The mixing weights move likewise.
    """
    op, settings = new_graph("perturb", context.opset), context.settings
    memory, _ = read_memory(op, context)
    flat = optimizers.flatten(op, read_parameters(op, context))
    loss = read(op, LOSS, ())
    weights, size = int(settings["domains"]) + 1, sum(p.initial.size for p in context.parameters)
    initial = seeded(int(settings["seed"]))
    numbers = Numbers(op, state_input(op.graph, SEED, initial))
    mixing = directions(op, numbers.many(0, weights))
    direction = directions(op, numbers.many(weights, size))
    other = replace(memory, weights=op.Add(memory.weights, op.Mul(mixing, float(settings["mixing_perturbation"]))))
    moved = op.Add(flat, op.Mul(direction, float(settings["perturbation"])))
    moved = op.Add(moved, op.Sub(other.mixture(), memory.mixture()))
    parts = optimizers.unflatten(op, moved, context.parameters)
    outputs = {f"{PERTURBED}.{p.name}": part for p, part in zip(context.parameters, parts, strict=True)}
    outputs |= {DIRECTION: direction, MIXING: mixing, BEFORE: op.Identity(loss)}
    following = numbers.following(weights + size)
    state = StateTensor(name=SEED, role="counter", initial=initial, value=numbers.state, next=following)
    return finished(op, outputs, [state], {BEFORE: "loss"})


def directions(op: Builder, drawn: ir.Value) -> ir.Value:
    """Numbers in (0, 1] as elements of a direction: the first half is positive."""
    twice = op.Mul(drawn, 2.0)
    negative = op.Cast(op.Greater(twice, 1.0), to=FLOAT)
    size = op.Add(op.Mul(op.Sub(twice, negative), 0.5), 0.5)
    return op.Mul(size, op.Sub(1.0, op.Mul(negative, 2.0)))


def update(context: Context) -> MethodGraph:
    """d <- d - r (g + w d), with g = (loss of the moved tensors - loss)/(c*direction).

    The mixing weights take one step of AdamW without memory, if there is a past domain.
    """
    op, settings = new_graph("update", context.opset), context.settings
    memory, initial = read_memory(op, context)
    values = read_parameters(op, context)
    size = sum(p.initial.size for p in context.parameters)
    direction, mixing = read(op, DIRECTION, [size]), read(op, MIXING, [int(settings["domains"]) + 1])
    rise = op.Sub(read(op, LOSS, ()), read(op, BEFORE, ()))
    flat, source = optimizers.flatten(op, values), source_of(context)
    own = op.Sub(op.Sub(flat, source), memory.mixture())
    gradient = op.Div(rise, op.Mul(direction, float(settings["perturbation"])))
    pulled = op.Add(gradient, op.Mul(own, float(settings["weight_decay"])))
    own = op.Sub(own, op.Mul(pulled, float(settings["lr"])))
    quotient = op.Div(rise, op.Mul(mixing, float(settings["mixing_perturbation"])))
    step = op.Div(quotient, op.Add(op.Abs(quotient), TINY))
    rate = float(settings["mixing_lr"])
    decayed = op.Mul(memory.weights, 1 - rate * float(settings["mixing_decay"]))
    used = op.LessOrEqual(np.arange(len(initial[WEIGHTS]), dtype=np.float32), memory.count)
    chosen = op.And(used, op.Greater(memory.count, 0.0))
    weights = op.Where(chosen, op.Sub(decayed, op.Mul(step, rate)), memory.weights)
    whole = op.Add(op.Add(own, replace(memory, weights=weights).mixture()), source)
    following = bounded(op, whole, context.parameters, settings)
    moved = optimizers.unflatten(op, following, context.parameters)
    state = [replace(p, value=v, next=m) for p, v, m in zip(context.parameters, values, moved, strict=True)]
    state += memory_state(memory, initial, {WEIGHTS: weights})
    graph = finished(op, {"domains.past": op.Identity(memory.count)}, state)
    return replace(graph, stats={"domains.past": "domains", **drift_stats(graph.model)})
