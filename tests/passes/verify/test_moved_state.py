"""Gradients through a running average: the backward must read the state from before the forward moved it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import ttac
from tests.support.source_models import Weights, norm, saved, source
from tests.support.whole_models import compiled as compiled_file
from tests.support.whole_models import state_of
from ttac import build_graphs
from ttac.errors import VerificationError
from ttac.passes.differentiate.reverse_walk import differentiate
from ttac.passes.graph.builder import Builder
from ttac.passes.partition.partition import partition
from ttac.passes.plan.decisions import Plan
from ttac.passes.plan.moved_state import copy_moved_state
from ttac.passes.plan.plan import plan_activations

NET = """
net (float[N,5,6,6] x) => (float[N,4] y) {
  c = Conv (x, "conv.weight")
  b = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  r = Relu (b)
  d = Conv (r, "next.weight")
  e = BatchNormalization (d, "last.weight", "last.bias", "last.running_mean", "last.running_var")
  s = Relu (e)
  p = GlobalAveragePool (s)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, "fc.weight", "fc.bias")
}
"""
MOMENTUM, LR, EPS = 0.1, 0.05, 1e-5
SETTINGS = {"statistics": "ema", "statistics_momentum": MOMENTUM, "optimizer": "sgd", "momentum": 0.0, "lr": LR}
Arrays = dict[str, np.ndarray]


def weights() -> Arrays:
    """float32 weights of both signs, with variances near 1."""
    random = np.random.default_rng(7)
    shapes: Weights = {
        "conv.weight": (6, 5, 1, 1), "next.weight": (5, 6, 1, 1), **norm("bn", 6), **norm("last", 5),
        "fc.weight": (4, 5), "fc.bias": (4,),
    }  # fmt: skip
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}  # type: ignore[arg-type]
    positive = ("running_var", "bn.weight", "last.weight")
    return {name: np.abs(a) + 0.5 if name.endswith(positive) else a for name, a in arrays.items()}


def normalised(x: np.ndarray, name: str, w: Arrays, running: Arrays, moved: Arrays) -> np.ndarray:
    """A batch norm that moves its statistics first, by a bounded change with a biased variance, in float64."""
    centre, mean, var = w[f"{name}.running_mean"], running[f"{name}.mean"], running[f"{name}.var"]
    deviation = np.sqrt(w[f"{name}.running_var"] + EPS)
    near = np.clip(x.mean((0, 2, 3)), centre - 2 * deviation, centre + 2 * deviation)
    small = np.minimum(x.var((0, 2, 3)), 4 * deviation**2)
    moved[f"{name}.mean"] = mean + MOMENTUM * np.clip(near - mean, -3 * deviation, 3 * deviation)
    moved[f"{name}.var"] = var + MOMENTUM * np.minimum(small - var, 8 * var)
    column = (None, slice(None), None, None)
    xhat = (x - moved[f"{name}.mean"][column]) / np.sqrt(moved[f"{name}.var"][column] + EPS)
    return xhat * w[f"{name}.scale"][column] + w[f"{name}.bias"][column]


def entropy(x: np.ndarray, w: Arrays, running: Arrays) -> tuple[float, Arrays]:
    """The mean entropy of the net's predictions, and the moved statistics, in float64."""
    moved: Arrays = {}
    for conv, name in (("conv", "bn"), ("next", "last")):
        x = np.einsum("nchw,oc->nohw", x, w[f"{conv}.weight"][:, :, 0, 0])
        x = np.maximum(normalised(x, name, w, running, moved), 0)
    y = x.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]
    p = np.exp(y - y.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return float(-(p * np.log(p)).sum(1).mean()), moved


def central_difference(loss: Callable[[], float], array: np.ndarray) -> np.ndarray:
    """The gradient of `loss` with respect to `array`, which `loss` reads, by steps of 1e-6."""
    gradient = np.zeros_like(array)
    for i in range(array.size):
        value = array.flat[i]
        array.flat[i] = value + 1e-6
        above = loss()
        array.flat[i] = value - 1e-6
        gradient.flat[i] = (above - loss()) / 2e-6
        array.flat[i] = value
    return gradient


def compiled(folder: Path, **options: object) -> Path:
    return compiled_file(saved(source(NET, weights()), folder), folder, method="tent", settings=SETTINGS, **options)


@pytest.mark.parametrize("options", [{}, {"memory_budget": "1GiB"}], ids=["no budget", "budget"])
def test_running_statistics_give_autograd_gradients(options: dict[str, object], tmp_path: Path) -> None:
    """Four steps: every change of scale and bias is -lr times the finite difference in float64."""
    adapter = ttac.load(compiled(tmp_path, batch=8, **options))
    w = {name: a.astype(np.float64) for name, a in weights().items()}
    for name in ("bn", "last"):
        w[f"{name}.scale"] = w.pop(f"{name}.weight")
    running = {f"{name}.{role}": w[f"{name}.running_{role}"] for name in ("bn", "last") for role in ("mean", "var")}
    trained = [f"{name}.{role}" for name in ("bn", "last") for role in ("scale", "bias")]
    for seed in range(4):
        x = np.random.default_rng(seed).normal(size=(8, 5, 6, 6)).astype(np.float32) * 2 + 1
        adapter.step(x)
        loss = partial(entropy, x.astype(np.float64), w, running)
        gradients = {name: central_difference(lambda loss=loss: loss()[0], w[name]) for name in trained}
        _, running = loss()
        state = {name: np.asarray(array, np.float64) for name, array in state_of(adapter).items()}
        for name, gradient in gradients.items():
            step = (w[name] - state[name]) / LR
            assert np.linalg.norm(step - gradient) <= 1e-4 * np.linalg.norm(gradient) + 1e-6, (seed, name)
            w[name] = state[name]
        for name, value in running.items():
            np.testing.assert_allclose(state[name], value, rtol=1e-5)


def test_a_backward_that_reads_moved_state_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner that counts all state as free lets the backward recompute the average from moved state."""

    def plan_all_free(graph: ir.Graph, backward: Sequence[ir.Node], free: object, batch: int) -> Plan:
        return plan_activations(graph, backward, list(graph.inputs), batch)

    monkeypatch.setattr(build_graphs, "plan_activations", plan_all_free)
    with pytest.raises(VerificationError, match="gradients halves"):
        compiled(tmp_path, batch=8)


def test_a_gradient_that_reads_state_gets_a_copy(tmp_path: Path) -> None:
    """d(y)/d(scale) of y = scale*state is the state: the backward reads a residual, once, and in any number of calls."""
    x, scale, state = (ir.val(name, ir.DataType.FLOAT, [3]) for name in ("x", "scale", "state"))
    graph = ir.Graph([x, scale, state], [], nodes=[], opset_imports={"": 18}, name="net")
    op = Builder(graph, "test")
    following = op.Add(state, x, name="next")
    loss = op.ReduceSum(op.Mul(scale, state), [0], keepdims=0, name="loss")
    forward = set(graph)
    (gradient,) = differentiate(graph, loss, [scale])
    assert gradient is not None
    gradient.name = "scale.grad"
    backward = [node for node in graph if node not in forward]
    graph.outputs.extend([loss, following, gradient])
    model = ir.Model(graph, ir_version=8)
    for _ in range(2):
        copy_moved_state(model, backward, [state])
    plan = plan_activations(graph, backward, [x, scale], 1)
    assert plan.residuals == ("state.begun",) and plan.moved == ("state",)
    halves = partition(model, [loss, following], [gradient], plan)
    assert halves.backward is not None
    assert "state" not in {value.name for value in halves.backward.graph.inputs}
    with pytest.raises(ValueError, match="state"):
        partition(model, [loss, following], [gradient], replace(plan, decisions=()))
