"""The optimizers: steps of the update graph against numpy and PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.whole_models import SINGLE
from ttac.passes.graph.execute import run
from ttac.passes.graph.state import StateTensor
from ttac.passes.step_graphs.optimizers import update_graph

SHAPES = {"a": (3,), "b": (2, 1, 4), "c": (1,)}

OPTIONS: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam", "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3},
    "adam with decay": {"optimizer": "adam", "lr": 0.1, "beta1": 0.0, "beta2": 0.5, "eps": 1e-8, "weight_decay": 0.3},
    "plain": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False},
    "momentum": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.2},
    "nesterov": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
}


def in_numpy(p: np.ndarray, gradients: Sequence[np.ndarray], o: dict[str, Any]) -> np.ndarray:
    """The parameter after one step per gradient, by the formulas of PyTorch 2."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        g = g + o.get("weight_decay", 0.0) * p
        if o["optimizer"] == "adam":
            m, v = o["beta1"] * m + (1 - o["beta1"]) * g, o["beta2"] * v + (1 - o["beta2"]) * g * g
            root = np.sqrt(v / (1 - o["beta2"] ** t)) + o["eps"]
            p = p - o["lr"] * (m / (1 - o["beta1"] ** t)) / root
        else:
            v = o["momentum"] * v + g
            p = p - o["lr"] * (g + o["momentum"] * v if o["nesterov"] else v)
    return p


def in_torch(p: np.ndarray, gradients: Sequence[np.ndarray], o: dict[str, Any]) -> np.ndarray:
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(p, requires_grad=True)
    decay = o.get("weight_decay", 0.0)
    if o["optimizer"] == "adam":
        optimizer = torch.optim.Adam([tensor], o["lr"], (o["beta1"], o["beta2"]), o["eps"], decay)
    else:
        optimizer = torch.optim.SGD([tensor], o["lr"], o["momentum"], 0.0, decay, o["nesterov"])
    for gradient in gradients:
        tensor.grad = torch.tensor(gradient)
        optimizer.step()
    found: np.ndarray = tensor.detach().numpy()
    return found


@pytest.mark.parametrize("name", list(OPTIONS))
@pytest.mark.parametrize("restated", [in_numpy, in_torch])
def test_five_steps_of_the_optimizer(name: str, restated: Any) -> None:
    random = np.random.default_rng(0)
    initial = {key: random.normal(size=shape) for key, shape in SHAPES.items()}
    gradients = [{key: random.normal(size=shape) for key, shape in SHAPES.items()} for _ in range(5)]
    parameters = [
        StateTensor(
            name=key, role="parameter", initial=value.astype(np.float32), value=ir.val(key, SINGLE, value.shape)
        )
        for key, value in initial.items()
    ]
    made = update_graph(parameters, [f"{key}.grad" for key in SHAPES], OPTIONS[name], 18)
    assert [value.name for value in made.model.graph.outputs] == [f"{tensor.name}.next" for tensor in made.state]
    state = {tensor.name: tensor.initial for tensor in made.state}
    for step in gradients:
        feeds = {**state, **{f"{key}.grad": value.astype(np.float32) for key, value in step.items()}}
        found = run(made.model, feeds)
        state = {key: found[f"{key}.next"] for key in state}
    for key, value in initial.items():
        expected = restated(value, [step[key] for step in gradients], OPTIONS[name])
        np.testing.assert_allclose(state[key], expected, rtol=1e-5, atol=1e-6)


def test_the_first_step_of_adam_is_of_full_size() -> None:
    """lr * sign(g), however small the gradient."""
    tensor = StateTensor(name="a", role="parameter", initial=np.zeros(2, np.float32), value=ir.val("a", SINGLE, [2]))
    settings = {"optimizer": "adam", "lr": 0.25, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    made = update_graph([tensor], ["g"], settings, 18)
    feeds = {t.name: t.initial for t in made.state} | {"g": np.array([1e-3, -1e-5], np.float32)}
    np.testing.assert_allclose(run(made.model, feeds)["a.next"], [-0.25, 0.25], rtol=1e-2)


def test_an_engine_sees_the_sizes_of_any_number_of_parts() -> None:
    """130 parameters: their sizes are more than a kilobyte, and no engine reads them from outside the graph."""
    tensors = [
        StateTensor(name=f"p{i}", role="parameter", initial=np.ones(1, np.float32), value=ir.val(f"p{i}", SINGLE, [1]))
        for i in range(130)
    ]
    gradients = {f"p{i}.grad": np.full(1, i, np.float32) for i in range(130)}
    made = update_graph(tensors, list(gradients), OPTIONS["plain"], 18)
    found = run(made.model, {**gradients, **{tensor.name: tensor.initial for tensor in tensors}})
    np.testing.assert_allclose([found[f"p{i}.next"][0] for i in range(130)], 1 - 0.1 * np.arange(130), rtol=1e-6)
