"""The entropy as a loss: its value and its gradient, against numpy."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.whole_models import SINGLE
from ttac.passes.differentiate.joint import differentiate_loss
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import DOMAIN
from ttac.passes.graph.execute import run
from ttac.passes.graph.expand import expand_all
from ttac.passes.graph.state import StateTensor


def entropy_of(logits: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss on `logits` and its gradient, as the graphs compute them."""
    y = ir.val("y", SINGLE, ["N", logits.shape[1]])
    graph = ir.Graph([y], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="loss")
    p = ir.val("p", SINGLE, [logits.shape[1]])
    graph.inputs.append(p)
    op = Builder(graph, "test")
    graph.outputs.append(op.Mul(y, p))
    model = ir.Model(graph, ir_version=8)
    tensor = StateTensor(name="p", role="parameter", initial=np.ones(logits.shape[1], np.float32), value=p)
    joint = differentiate_loss(model, graph.outputs[0], "entropy", (tensor,))
    assert joint.loss is not None
    graph.outputs[:] = [joint.loss.scalar, *joint.gradients]
    found = run(expand_all(model), {"y": logits.astype(np.float32), "p": tensor.initial})
    return float(found["entropy"]), found["p.grad"]


def test_entropy() -> None:
    random = np.random.default_rng(0)
    z = random.normal(0, 2, (5, 4))
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    value, gradient = entropy_of(z)
    entropies = -(np.exp(log_p) * log_p).sum(1, keepdims=True)
    assert value == pytest.approx(entropies.mean(), rel=1e-5)
    derivative = -np.exp(log_p) * (log_p + entropies) / 5
    np.testing.assert_allclose(gradient, (derivative * z).sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (np.zeros((3, 7)), math.log(7)),
        (np.full((1, 2), 1e4), math.log(2)),
        (np.array([[1e4, -1e4, 0.0]]), 0.0),
    ],
)
def test_entropy_at_its_ends(logits: np.ndarray, expected: float) -> None:
    value, gradient = entropy_of(logits)
    assert value == pytest.approx(expected, abs=1e-6) and np.isfinite(gradient).all()
