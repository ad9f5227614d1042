"""Layer norms, activations and the gradient of a softmax against NumPy in float64, PyTorch and finite differences."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ttac_kernels", reason="needs ttac-kernels (make kernels)")

from tests.support.kernel_layer_case import STATISTICS, check_activation, check_layer, check_softmax, layer_case
from tests.support.kernel_session import run

ROWS = {"axis": -1, "epsilon": 1e-5, "block": 1}


def arrays(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    maps = {name: random.standard_normal(shape).astype(np.float32) for name in ("x", "residual", "dy", "more")}
    return maps | {name: random.uniform(0.5, 1.5, shape[-1]).astype(np.float32) for name in ("scale", "bias")}


@pytest.mark.parametrize("first", range(0, 100, 50))
def test_random_cases_agree_with_numpy_in_float64(first: int) -> None:
    for seed in range(first, first + 50):
        check_layer(layer_case(seed))
        check_activation(seed)
        check_softmax(seed)


def test_a_layer_norm_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    given = arrays((4, 17, 37))
    forward = {name: given[name] for name in ("x", "scale", "bias", "residual")}
    made = run("LayerNormForward", forward, ["y", *STATISTICS, "sum"], ROWS)
    fed = {"dy": given["dy"], "x": made["sum"], "scale": given["scale"], **{name: made[name] for name in STATISTICS}}
    found = run("LayerNormBackward", {**fed, "more": given["more"]}, ["dx", "dscale", "dbias"], ROWS)
    leaves = {name: torch.tensor(given[name], requires_grad=True) for name in ("x", "scale", "bias")}
    total = leaves["x"] + torch.tensor(given["residual"])
    y = torch.nn.functional.layer_norm(total, (37,), leaves["scale"], leaves["bias"])
    (y * torch.tensor(given["dy"]) + total * torch.tensor(given["more"])).sum().backward()
    np.testing.assert_allclose(made["y"], y.detach(), atol=1e-5)
    for name in ("x", "scale", "bias"):
        np.testing.assert_allclose(found[f"d{name}"], leaves[name].grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("act", "approximate"), [("gelu", "none"), ("tanhgelu", "tanh")])
def test_a_gelu_is_that_of_pytorch(act: str, approximate: str) -> None:
    torch = pytest.importorskip("torch")
    x = np.linspace(-9, 9, 2001, dtype=np.float32)
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.gelu(leaf, approximate=approximate)
    y.sum().backward()
    found = run("ActivationForward", {"x": x}, ["y"], {"act": act})
    slope = run("ActivationBackward", {"dy": np.ones_like(x), "x": x}, ["dx"], {"act": act})
    np.testing.assert_allclose(found["y"], y.detach(), atol=2e-6)
    np.testing.assert_allclose(slope["dx"], leaf.grad, atol=2e-6)


def test_the_gradient_is_the_slope_of_the_forward() -> None:
    given = arrays((3, 5, 24))
    inputs = {name: given[name] for name in ("x", "scale", "bias")}
    made = run("LayerNormForward", inputs, ["y", *STATISTICS], ROWS)
    fed = {"dy": given["dy"], "x": given["x"], "scale": given["scale"], **{name: made[name] for name in STATISTICS}}
    dx = run("LayerNormBackward", fed, ["dx"], ROWS)["dx"]
    step = np.random.default_rng(1).standard_normal(dx.shape).astype(np.float32)
    ends = [run("LayerNormForward", {**inputs, "x": given["x"] + h * step}, ["y"], ROWS)["y"] for h in (0.01, -0.01)]
    slope = ((ends[0].astype(np.float64) - ends[1]) * given["dy"]).sum() / 0.02
    assert slope == pytest.approx((dx * step).sum(dtype=np.float64), rel=2e-3)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [({"axis": 2}, "attribute axis: not 1 or -1"), ({"axis": 1, "block": 16}, "no multiple of the block")],
)
def test_a_layer_norm_that_does_not_fit_is_refused(attributes: dict[str, object], message: str) -> None:
    given = arrays((2, 5, 24))
    with pytest.raises(Exception, match=message):
        run("LayerNormForward", {name: given[name] for name in ("x", "scale", "bias")}, ["y"], {**ROWS, **attributes})
