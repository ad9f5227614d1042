"""Graphs and feeds that a bundle is compared with: the loss on even weights, and the joint graph before the cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.joint import Joint
from ttac.passes.differentiate.losses import ROOM, WEIGHTS
from ttac.passes.graph.execute import run
from ttac.passes.graph.expand import expand_all
from ttac.passes.graph.keys import OPEN, ROOM_KEY
from ttac.passes.graph.shapes import dims
from ttac.passes.lower.fed_weights import make_fed_weights
from ttac.passes.lower.lower import lower
from ttac.passes.operators.stop_gradient import DETACHED
from ttac.passes.partition.partition import drop_unread_inputs
from ttac.passes.verify.float64 import Float64
from ttac.spec import Target


def even_weights(joint: Joint, count: int) -> np.ndarray:
    """Equal weights of the loss at every position of `count` samples, float32, 1 in sum."""
    each = joint.loss.samples if joint.loss else None
    shape = [count if isinstance(size, str) else size for size in dims(each)] if each is not None else [count]
    return np.full(shape, 1 / math.prod(shape), np.float32)


def loss_feeds(joint: Joint, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs of the loss by name: the `weights`, and for a loss of two views random scores of the other view.

    Scalar inputs are as large as one weight.
    """
    feeds = {WEIGHTS: weights}
    for value in joint.loss.other_inputs if joint.loss else ():
        shape = [len(weights) if isinstance(size, str) else size for size in dims(value)]
        random = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        feeds[str(value.name)] = random if shape else np.full((), weights.reshape(-1)[0])
    return feeds


def scores_of_loss(joint: Joint) -> list[ir.Value]:
    """Return the values of the model from which the loss is computed: the scores, as a rule one value."""
    assert joint.loss is not None
    scores: list[ir.Value] = []
    pending, seen = [joint.loss.scalar], {id(value) for value in joint.loss.inputs}
    while pending:
        value = pending.pop()
        node = value.producer()
        if id(value) in seen or value.const_value is not None:
            continue
        seen.add(id(value))
        if node is None or node.metadata_props.get(ROOM_KEY) != ROOM:
            scores.append(value)
        else:
            pending += [each for each in node.inputs if each is not None]
    return scores


def loss_of_scores(joint: Joint, feeds: Mapping[str, np.ndarray]) -> Callable[[Sequence[np.ndarray]], float]:
    """Return the loss in float64 as a function of `scores_of_loss`, with `feeds` for its other inputs.

    In float32 the loss of near-uniform predictions changes less than its rounding.
    """
    loss, scores = joint.loss, scores_of_loss(joint)
    assert loss is not None
    names = [str(value.name) for value in scores]
    graph = ir.convenience.extract(joint.model.graph, inputs=[*scores, *loss.inputs], outputs=[loss.scalar])
    model = ir.Model(graph, ir_version=joint.model.ir_version)
    evaluate = Float64(expand_all(model, "verify"))
    return lambda arrays: float(evaluate({**feeds, **dict(zip(names, arrays, strict=True))})[0])


def scores_model(joint: Joint, target: Target) -> ir.Model:
    """Return a forward graph whose outputs are the scores: a Softmax or Sigmoid at the end rounds too much.

    Values whose gradient stops are inputs: the derivative takes them as constants.
    """
    inputs = [*joint.model.graph.inputs, *_detached(joint)]
    graph = ir.convenience.extract(joint.model.graph, inputs, scores_of_loss(joint))
    drop_unread_inputs(graph)
    graph.name = "scores"
    return lower(ir.Model(graph, ir_version=joint.model.ir_version), target)


def detached_values(joint: Joint, feeds: Mapping[str, np.ndarray], target: Target) -> dict[str, np.ndarray]:
    """Return the values whose gradient stops, by name, for the inputs `feeds`."""
    values = _detached(joint)
    if not values:
        return {}
    graph = ir.convenience.extract(joint.model.graph, list(joint.model.graph.inputs), values)
    drop_unread_inputs(graph)
    model = lower(ir.Model(graph, ir_version=joint.model.ir_version), target)
    return dict(run(model, feeds, [str(value.name) for value in values]))


def _detached(joint: Joint) -> list[ir.Value]:
    """Return the values whose gradient stops."""
    return [node.outputs[0] for node in joint.model.graph if node.op_type == DETACHED]


def joint_reference(joint: Joint, target: Target, *, open_sizes: bool = False) -> ir.Model:
    """A copy of the joint graph in the operators of the halves, with logits and gradients as outputs.

    With `open_sizes`, no choice of operators depends on a size.
    """
    model = joint.model.clone()
    model.graph.meta[OPEN] = open_sizes
    values = ir.convenience.create_value_mapping(model.graph)
    names = [joint.logits.name, *(gradient.name for gradient in joint.gradients)]
    model.graph.outputs[:] = [values[str(name)] for name in names]
    lower(model, target)
    make_fed_weights([model])
    return model
