"""SIGHT: windows against the published code, a reset, probabilities, and the steps that it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import ttac
from tests.support.adapted import KINDS
from tests.support.official import official, trajectory
from tests.support.source_models import saved
from tests.support.whole_models import MODELS, compiled, refused, samples, state_of
from ttac.errors import UnsupportedError

IMAGE = (3, 16, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_forty_windows_equal_the_published_code(kind: str, tmp_path: Path) -> None:
    found, expected = trajectory("sight", kind, tmp_path, batch=1), official("sight", kind)
    np.testing.assert_allclose(np.exp(found["logits"]), np.exp(expected["logits"]), rtol=0, atol=1e-4)
    for name in ("sight.habit", "sight.belief", "sight.prototypes"):
        np.testing.assert_allclose(found[name], expected[f"after/{name}"], rtol=0, atol=1e-4)
    assert np.abs(expected["after/sight.habit"] - 1 / 6).max() > 0.05


def test_the_first_belief_is_the_prediction_also_after_a_reset(tmp_path: Path) -> None:
    plain, adapter = (ttac.load(compiled(MODELS["resnet"], tmp_path, method=m, batch=1)) for m in ("source", "sight"))
    first, second = (samples(IMAGE, 1, seed=seed) for seed in (1, 2))
    expected = plain.step(first).astype(np.float64)
    expected -= np.log(np.exp(expected).sum(1, keepdims=True))
    initial = state_of(adapter)
    for _ in range(2):
        np.testing.assert_allclose(adapter.step(first), expected, rtol=0, atol=1e-5)
        adapter.step(second)
        adapter.reset()
        assert all(np.array_equal(value, initial[name]) for name, value in state_of(adapter).items())


def test_probabilities_stay_probabilities(tmp_path: Path) -> None:
    net = onnx.load(MODELS["resnet"])
    net.graph.node.append(onnx.helper.make_node("Softmax", [net.graph.output[0].name], ["given"], axis=1))
    net.graph.output[0].name = "given"
    given = ttac.load(compiled(saved(net, tmp_path), tmp_path, method="sight", batch=1))
    plain = ttac.load(compiled(MODELS["resnet"], tmp_path, method="sight", batch=1))
    for seed in range(3):
        x = samples(IMAGE, 1, seed=seed)
        np.testing.assert_allclose(given.step(x), np.exp(plain.step(x)), rtol=0, atol=1e-5)


def test_batches_are_refused_with_the_way_out() -> None:
    message = refused(UnsupportedError, MODELS["resnet"], method="sight", batch=4)
    assert "order of time" in message and "--batch 1" in message
