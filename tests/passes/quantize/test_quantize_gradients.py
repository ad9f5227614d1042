"""Gradients through 8-bit layers: straight through every rounding, so that norms between them can be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file

import ttac
import ttac.passes.differentiate.rules
from tests.support.source_models import run
from ttac.passes.differentiate.reverse_walk import differentiate
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import DOMAIN
from ttac.passes.load.model_file import load
from ttac.passes.lower.lower import lower
from ttac.passes.quantize.float_layers import float_layers
from ttac.targets import find

MODELS = Path(__file__).resolve().parents[2] / "models"


def rounded_with_gradient(
    kind: str, scale: float, zero: Any, x: np.ndarray, dy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rounded x, and the gradient of sum(dy * rounded) by x."""
    found = []
    for position in range(2):
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="graph")
        value = ir.val("x", ir.DataType.FLOAT, x.shape)
        graph.inputs.append(value)
        op = Builder(graph, "test")
        y = getattr(op, kind)(value, np.array(scale, np.float32), np.asarray(zero))
        (gradient,) = differentiate(graph, op.ReduceSum(op.Mul(y, dy), keepdims=0), [value])
        assert gradient is not None
        graph.outputs.append((y, gradient)[position])
        found.append(run(lower(ir.Model(graph, ir_version=8), find("cpu")), x))
    return found[0], found[1]


X = np.array([-9.0, -1.0, -0.26, -0.2, 0.0, 0.2, 0.26, 1.0, 200.0], np.float32)
DY = np.arange(1, 10, dtype=np.float32)


def test_rounding_passes_the_gradient_on() -> None:
    y, dx = rounded_with_gradient("Rounded", 0.5, np.uint8(2), X, DY)
    np.testing.assert_array_equal(y, [-1, -1, -0.5, 0, 0, 0, 0.5, 1, 126.5])
    np.testing.assert_array_equal(dx, DY)


@pytest.mark.parametrize("zero", [np.uint8(0), np.int8(-128)])
def test_rounding_from_zero_on_is_a_relu_too(zero: Any) -> None:
    y, dx = rounded_with_gradient("Rounded", 0.5, zero, X, DY)
    np.testing.assert_array_equal(y, [0, 0, 0, 0, 0, 0, 0.5, 1, 127.5])
    np.testing.assert_array_equal(dx, DY * (y > 0))


def test_the_numbers_of_a_grid_pass_it_on_in_their_units() -> None:
    y, dx = rounded_with_gradient("Counted", 0.5, np.uint8(2), X, DY)
    np.testing.assert_array_equal(y, [0, 0, 1, 2, 2, 2, 3, 4, 255])
    np.testing.assert_allclose(dx, DY / 0.5, rtol=1e-6)


def test_between_the_ends_it_is_the_gradient_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor(X[1:-1], requires_grad=True)
    y = torch.fake_quantize_per_tensor_affine(x, 0.5, 2, 0, 255)
    (y * torch.from_numpy(DY[1:-1])).sum().backward()
    found, dx = rounded_with_gradient("Rounded", 0.5, np.uint8(2), X[1:-1], DY[1:-1])
    np.testing.assert_array_equal(found, y.detach().numpy())
    np.testing.assert_array_equal(dx, x.grad.numpy())


def stepped(
    method: str, name: str, quantize: str | None, folder: Path, train: str
) -> tuple[dict[str, np.ndarray], ttac.Bundle]:
    """The update of one step of plain gradient descent to the parameters."""
    model = MODELS / f"{name}.onnx"
    shape = [int(str(size)) for size in (load(model).graph.inputs[0].shape or [])[1:]]
    x = np.random.default_rng(0).standard_normal((64, *shape)).astype(np.float32)
    bundle = ttac.compile(
        model,
        method=method,
        quantize=quantize,
        calibration=x,
        batch=32,
        train=train,
        settings={"optimizer": "sgd", "momentum": 0.0, "lr": 1.0},
        output=folder / f"{quantize}.ttac",
    )
    assert bundle.path is not None
    adapter = ttac.load(bundle.path)
    adapter.save(folder / "before.safetensors")
    adapter.step((0.7 * x[:32] + 0.5).astype(np.float32))
    adapter.save(folder / "after.safetensors")
    before, after = (load_file(folder / f"{when}.safetensors") for when in ("before", "after"))
    names = [entry["name"] for entry in bundle.manifest["state"]["tensors"] if entry["role"] == "parameter"]
    return {name: after[name] - before[name] for name in names}, bundle


@pytest.mark.slow
@pytest.mark.parametrize(("name", "train"), [("resnet", "norms"), ("mobilenet_v2", "every:3")])
def test_a_step_goes_where_the_float_model_would_go(name: str, train: str, tmp_path: Path) -> None:
    plain, _ = stepped("tent", name, None, tmp_path, train)
    found, bundle = stepped("tent", name, "int8", tmp_path, train)
    assert plain.keys() == found.keys() and plain
    whole, other = (np.concatenate([step[key].ravel() for key in sorted(step)]) for step in (plain, found))
    assert whole @ other / (np.linalg.norm(whole) * np.linalg.norm(other)) > 0.97
    assert 0.8 < np.linalg.norm(other) / np.linalg.norm(whole) < 1.25
    assert bundle.path is not None
    assert float_layers(bundle.path / "forward.onnx") == []
    assert bundle.report["verified"]["derivative"] is None and bundle.report["verified"]["gradients_halves"] < 0.05
