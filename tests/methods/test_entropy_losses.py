"""Entropy losses of further methods and options, against published code or the formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ttac
from tests.support.adapted import BATCH, CLASSES, KINDS, inputs, model, seed_of
from tests.support.official import official, worst
from tests.support.source_models import saved
from tests.support.whole_models import MODELS, compiled, executed, refused, state_of
from ttac.errors import UnsupportedError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", ["shot-im", "tent-come", "eata-come", "delta"])
def test_five_steps_equal_the_published_code(run: str, kind: str, tmp_path: Path) -> None:
    assert worst(run, kind, tmp_path) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_runs_differ(kind: str) -> None:
    last = [official(run, kind)["logits"][-1] for run in ("shot-im", "tent-come", "eata-come", "delta")]
    assert min(np.abs(a - b).max() for i, a in enumerate(last) for b in last[:i]) > 1e-2


def robust(entropy: np.ndarray, shape: float, scale: float) -> np.ndarray:
    """Barron's general loss rho(x; a, c) (arXiv:1701.03077, eq. 8 and 9), for a other than 0."""
    square = (entropy / scale) ** 2
    if shape == 2.0:
        return np.asarray(square / 2)
    distance = abs(shape - 2)
    return np.asarray(distance / shape * ((square / distance + 1) ** (shape / 2) - 1))


@pytest.mark.parametrize("shape", [2.0, 1.0, -2.0, -8.0])
def test_robust_weights_are_the_derivative_of_the_loss(shape: float, tmp_path: Path) -> None:
    settings = {"robust_shape": shape, "robust_scale": 0.4}
    bundle = compiled(model("layer"), tmp_path, method="robust-entropy", batch=BATCH, norms="keep", settings=settings)
    values = executed(bundle, inputs(seed_of("layer"))["x"][0])
    entropy, scale = values["entropy.samples"].astype(np.float64), 0.4 * np.log(CLASSES)
    slope = (robust(entropy + 1e-5, shape, scale) - robust(entropy - 1e-5, shape, scale)) / 2e-5
    np.testing.assert_allclose(values["sample.weights"], slope / BATCH, rtol=1e-4)


def test_recovery_and_ascent_take_the_conservative_entropy(tmp_path: Path) -> None:
    """Fewer samples are reliable, because one answer more can be uncertain; the reported entropy is the plain one."""
    plain: dict[str, Any] = {"margin": 0.6, "lr": 0.05}
    bundle = compiled(
        model("group"), tmp_path, method="sar", batch=BATCH, norms="keep", settings={**plain, "come": True}
    )
    adapter = ttac.load(bundle, threads=1)
    adapter.step(inputs(seed_of("group"))["x"][0])
    without = ttac.load(compiled(model("group"), tmp_path, method="sar", batch=BATCH, norms="keep", settings=plain))
    without.step(inputs(seed_of("group"))["x"][0])
    assert adapter.stats["selected"] < without.stats["selected"] and adapter.stats["entropy"] == pytest.approx(
        without.stats["entropy"], rel=1e-5
    )


def test_rare_classes_weigh_more_and_reset_forgets(tmp_path: Path) -> None:
    settings = {"balance": True, "optimizer": "sgd", "lr": 0.0}
    bundle = compiled(model("group"), tmp_path, method="tent", batch=BATCH, norms="keep", settings=settings)
    adapter = ttac.load(bundle, threads=1)
    expected = np.full(CLASSES, 1 / CLASSES)
    for x in inputs(seed_of("group"))["x"]:
        logits = adapter.step(x).astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        expected = 0.95 * expected + 0.05 * p.mean(0)
    np.testing.assert_allclose(state_of(adapter)["classes.average"], expected, atol=1e-6)
    adapter.reset()
    np.testing.assert_array_equal(state_of(adapter)["classes.average"], np.full(CLASSES, 1 / CLASSES, np.float32))


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [("shot-im", {}, "all classes"), ("tent", {"come": True}, "`come`"), ("eata", {"balance": True}, "`balance`")],
)
def test_yes_or_no_answers_are_refused(method: str, settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    net = onnx.load(MODELS["resnet"])
    net.graph.node.append(onnx.helper.make_node("Sigmoid", [net.graph.output[0].name], ["answers"]))
    net.graph.output[0].name = "answers"
    path = saved(net, tmp_path)
    message = refused(UnsupportedError, path, method=method, settings=settings, head="binary")
    assert words in message
