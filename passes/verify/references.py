"""Graphs and feeds that a bundle is compared with: the loss on even weights, and the joint graph before the cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.joint import Joint
from ttac.passes.differentiate.losses import WEIGHTS
from ttac.passes.graph.execute import run
from ttac.passes.graph.expand import expand_all
from ttac.passes.graph.shapes import dims
from ttac.passes.lower.fed_weights import feed_pointwise
from ttac.passes.lower.lower import lower
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
    for value in joint.loss.fed if joint.loss else ():
        shape = [len(weights) if isinstance(size, str) else size for size in dims(value)]
        random = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        feeds[str(value.name)] = random if shape else np.full((), weights.reshape(-1)[0])
    return feeds


def loss_of_scores(joint: Joint, feeds: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], float]:
    """The loss as a function of the scores, with `feeds` for its other inputs; no graph of the bundle computes it."""
    loss = joint.loss
    assert loss is not None and loss.scores is not None
    name, scalar = str(loss.scores.name), str(loss.scalar.name)
    graph = ir.convenience.extract(joint.model.graph, inputs=[loss.scores, *loss.given], outputs=[loss.scalar])
    model = ir.Model(graph, ir_version=joint.model.ir_version)
    expand_all(model, "verify")
    return lambda scores: float(run(model, {**feeds, name: scores})[scalar])


def joint_reference(joint: Joint, target: Target) -> ir.Model:
    """A copy of the joint graph in the operators of the halves, with logits and gradients as outputs."""
    model = joint.model.clone()
    values = ir.convenience.create_value_mapping(model.graph)
    names = [joint.logits.name, *(gradient.name for gradient in joint.gradients)]
    model.graph.outputs[:] = [values[str(name)] for name in names]
    lower(model, target)
    feed_pointwise([model])
    return model
