"""The correction by the classes of a batch, as an option of methods with and without gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ttac
from tests.support.source_models import saved
from tests.support.whole_models import MODELS, compiled, refused, samples, state_of
from ttac.errors import UnsupportedError
from ttac.passes.step_graphs.prior_correction import CORRECT

BATCH = 8
X = samples((3, 16, 16), BATCH)


def adapter(folder: Path, path: Path = MODELS["resnet"], **choices: Any) -> ttac.Adapter:
    return ttac.load(compiled(path, folder, batch=BATCH, **choices), threads=1)


def corrected(z: np.ndarray) -> np.ndarray:
    """z (f + s)/(1 + s C), with f the mean probabilities and s = max(1/N, 1/C)/max f."""
    z = z.astype(np.float64)
    f = (np.exp(z) / np.exp(z).sum(1, keepdims=True)).mean(0)
    s = max(1 / len(z), 1 / len(f)) / f.max()
    return z * (f + s) / (1 + s * len(f))


@pytest.mark.parametrize("method", ["source", "bn", "neo", "tent", "sar", "cotta"])
def test_the_correction_multiplies_the_returned_scores(method: str, tmp_path: Path) -> None:
    """With cotta, the teacher's answer; steps learn as without the correction, and `predict` is plain."""
    more = {"confidence": 0.0, "black": "-3", "white": "3"} if method == "cotta" else {}
    plain, found = (adapter(tmp_path, method=method, settings={**more, "prior_correction": on}) for on in (False, True))
    for _ in range(2):
        np.testing.assert_allclose(found.step(X), corrected(plain.step(X)), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found.predict(X), plain.predict(X))
    after, expected = state_of(found), state_of(plain)
    assert all(np.array_equal(after[name], value) for name, value in expected.items())


def test_the_backward_may_have_stages(tmp_path: Path) -> None:
    demo = Path(ttac.__file__).parent / "demo"
    more: dict[str, Any] = {"method": "cotta", "batch": 16, "calibration": demo / "fashion_calibration.npz"}
    settings = {"prior_correction": True}
    bundle = compiled(demo / "fashion_resnet_bn.onnx", tmp_path, settings=settings, **more)
    manifest = ttac.Bundle.read(bundle).manifest
    assert "backward-2" in manifest["graphs"] and {"run": CORRECT} in manifest["programs"]["step"]


def test_the_guard_holds_no_correction_back(tmp_path: Path) -> None:
    """A batch of one sample is held, and still corrected."""
    x = np.repeat(X[:1], BATCH, axis=0)
    settings = {"guard": "on"}
    plain, found = (adapter(tmp_path, settings={**settings, "prior_correction": on}) for on in (False, True))
    np.testing.assert_allclose(found.step(x), corrected(plain.step(x)), rtol=0, atol=1e-4)


def test_probabilities_stay_probabilities(tmp_path: Path) -> None:
    net = onnx.load(MODELS["resnet"])
    net.graph.node.append(onnx.helper.make_node("Softmax", [net.graph.output[0].name], ["given"], axis=1))
    net.graph.output[0].name = "given"
    plain = adapter(tmp_path, saved(net, tmp_path), method="source")
    found = adapter(tmp_path, saved(net, tmp_path), method="source", settings={"prior_correction": True})
    z = corrected(np.log(plain.step(X).astype(np.float64)))
    np.testing.assert_allclose(found.step(X), np.exp(z) / np.exp(z).sum(1, keepdims=True), rtol=0, atol=1e-5)


def test_answers_of_yes_or_no_are_refused() -> None:
    settings = {"prior_correction": True}
    message = refused(UnsupportedError, MODELS["resnet"], method="tent", head="binary", settings=settings)
    assert "the frequencies of classes" in message
