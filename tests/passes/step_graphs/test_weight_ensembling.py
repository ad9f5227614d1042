"""Weight ensembling: after its step, a parameter is blended with the source (Marsden et al., arXiv:2306.00650)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ttac.passes.graph.execute import run
from ttac.passes.graph.state import StateTensor
from ttac.passes.step_graphs.optimizers import update_graph

SGD = {"optimizer": "sgd", "lr": 0.5, "momentum": 0.0, "nesterov": False}


def parameters() -> list[StateTensor]:
    random = np.random.default_rng(0)
    shapes = {"a": (3,), "b": (2, 2)}
    return [
        StateTensor(
            name=name,
            role="parameter",
            initial=random.standard_normal(shape, dtype=np.float32),
            value=ir.val(name, ir.DataType.FLOAT, shape),
        )
        for name, shape in shapes.items()
    ]


@pytest.mark.parametrize("weight", [0.01, 0.3, 1.0])
def test_the_step_is_blended_with_the_source(weight: float) -> None:
    tensors = parameters()
    made = update_graph(tensors, ["ga", "gb"], {**SGD, "source_weight": weight}, 18)
    now = {t.name: t.initial + 1 for t in tensors}
    gradients = {"ga": np.full((3,), 2, np.float32), "gb": np.full((2, 2), -4, np.float32)}
    outputs = run(made.model, {**now, **gradients})
    for tensor, gradient in zip(tensors, gradients.values(), strict=True):
        stepped = now[tensor.name] - 0.5 * gradient
        expected = (1 - weight) * stepped + weight * tensor.initial
        np.testing.assert_allclose(outputs[f"{tensor.name}.next"], expected, rtol=1e-5, atol=1e-6)


def test_without_a_weight_the_graph_is_unchanged() -> None:
    graphs = [
        update_graph(parameters(), ["ga", "gb"], settings, 18).model
        for settings in (SGD, {**SGD, "source_weight": 0.0})
    ]
    assert ir.to_proto(graphs[0]) == ir.to_proto(graphs[1])
