"""Predictions of images and of their distortions that shall agree, in one backward graph that runs once for each view.

The gradient of u*sum_i CE(p_i, q_i) through p and through q is the sum of two: of the distorted view, with p fixed, and
of the plain one, with q fixed (`losses.consistent_entropy`).  So the activations of the two views are never
there at once; held between the runs are a batch's scores and one gradient of each parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.differentiate.losses import AS_PREDICTION, AS_TARGET, OTHER, SAMPLES, WEIGHTS, mean, surprises, total
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import state_input
from ttac.passes.step_graphs.context import Context, MethodGraph, finished

ROOM = "consistency"
HELD, SUM, CONSISTENCY = "held", "sum", "consistency"


def probe(context: Context) -> MethodGraph:
    """The plain mean of the entropies, and nothing of another view."""
    op, scores, entropies = _builder(context, "probe")
    ones = _ones(op, entropies)
    count = total(op, ones)
    nothing = op.Mul(count, 0.0)
    outputs = {WEIGHTS: op.Div(ones, count), OTHER: op.Identity(scores)}
    return finished(op, {**outputs, AS_TARGET: nothing, AS_PREDICTION: op.Identity(nothing)})


def target(context: Context) -> MethodGraph:
    """The plain view's scores as what the distorted view, with nothing else to learn, shall predict."""
    op, scores, entropies = _builder(context, "target")
    weight = _weight(op, context, entropies)
    outputs = {WEIGHTS: op.Mul(entropies, 0.0), OTHER: op.Identity(scores)}
    return finished(op, {**outputs, AS_TARGET: op.Mul(weight, 0.0), AS_PREDICTION: weight})


def hold(context: Context) -> MethodGraph:
    """The distorted view's gradients as `<gradient>.held`, and its scores as what the plain view is compared with."""
    op, scores, entropies = _builder(context, "hold")
    weight = _weight(op, context, entropies)
    gradients = _gradients(op, context, context.gradients)
    outputs = {f"{g.name}.{HELD}": op.Identity(g) for g in gradients}
    return finished(op, {**outputs, OTHER: op.Identity(scores), AS_TARGET: weight, AS_PREDICTION: op.Mul(weight, 0.0)})


def both(context: Context) -> MethodGraph:
    """The gradients of both views as `<gradient>.sum`; reported is the mean of CE(p, q)."""
    op, scores, other = _builder(context, "both", read=OTHER)
    gradients = _gradients(op, context, context.gradients)
    held = _gradients(op, context, [f"{name}.{HELD}" for name in context.gradients])
    sums = [op.Add(a, b) for a, b in zip(gradients, held, strict=True)]
    apart = mean(op, surprises(op, scores, other, context.head), CONSISTENCY)
    outputs = {**dict(zip(summed(context.gradients), sums, strict=True)), CONSISTENCY: apart}
    return finished(op, outputs, stats={CONSISTENCY: "consistency"})


def summed(gradients: Sequence[str]) -> list[str]:
    """The names of the gradients of both views together."""
    return [f"{name}.{SUM}" for name in gradients]


def _builder(context: Context, name: str, read: str = SAMPLES) -> tuple[Builder, ir.Value, ir.Value]:
    """A graph that reads the scores, and the entropies at each position or what else has the scores' shape."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": context.opset}, name=name)
    shapes = (context.head.shape, context.head.positions if read == SAMPLES else context.head.shape)
    scores, other = (
        ir.val(given, dtype=ir.DataType.FLOAT, shape=ir.Shape(list(shape)))
        for given, shape in zip((context.logits, read), shapes, strict=True)
    )
    graph.inputs.extend([scores, other])
    return Builder(graph, ROOM, context.opset), scores, other


def _ones(op: Builder, entropies: ir.Value) -> ir.Value:
    return op.Add(op.Mul(entropies, 0.0), 1.0)


def _weight(op: Builder, context: Context, entropies: ir.Value) -> ir.Value:
    """cr_weight/n."""
    return op.Div(float(context.settings["cr_weight"]), total(op, _ones(op, entropies)))


def _gradients(op: Builder, context: Context, names: Sequence[str]) -> list[ir.Value]:
    return [state_input(op.graph, name, p.initial) for name, p in zip(names, context.parameters, strict=True)]
