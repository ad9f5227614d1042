"""ROID: steps of the published code, the corrected prediction, equal samples, and the models that it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.adapted import BATCH, CLASSES, KINDS, inputs, model, seed_of
from tests.support.official import SETTINGS, official, worst
from tests.support.whole_models import MODELS, compiled, refused, samples, state_of
from ttac.errors import UnsupportedError


def adapter(folder: Path, **settings: float | str | bool) -> ttac.Adapter:
    chosen = {**SETTINGS["roid"], **settings}
    bundle = compiled(model("group"), folder, method="roid", batch=BATCH, norms="keep", settings=chosen)
    return ttac.load(bundle, threads=1)


@pytest.mark.parametrize("kind", KINDS)
def test_five_steps_equal_the_published_code(kind: str, tmp_path: Path) -> None:
    """The logits of the transformer move by more than their size: the run learns."""
    assert worst("roid", kind, tmp_path) < 1e-4
    assert np.abs(official("roid", "layer")["logits"][-1]).max() > 4


def test_the_correction_multiplies_the_scores(tmp_path: Path) -> None:
    x = inputs(seed_of("group"))["x"][0]
    plain, found = (adapter(tmp_path, prior_correction=on).step(x).astype(np.float64) for on in (False, True))
    p = np.exp(plain) / np.exp(plain).sum(1, keepdims=True)
    s = max(1 / BATCH, 1 / CLASSES) / p.mean(0).max()
    np.testing.assert_allclose(found, plain * (p.mean(0) + s) / (1 + s * CLASSES), atol=1e-5)


@pytest.mark.parametrize("count", [1, BATCH])
def test_equal_samples_give_finite_state(count: int, tmp_path: Path) -> None:
    """The published code divides by a spread of zero there."""
    running = adapter(tmp_path)
    for x in inputs(seed_of("group"))["x"][:2]:
        assert np.isfinite(running.step(np.repeat(x[:1], count, axis=0))).all()
    assert running.stats["rejected"] == 0 and all(np.isfinite(value).all() for value in state_of(running).values())


def test_the_source_holds_the_parameters(tmp_path: Path) -> None:
    """With the whole source blended in, every step ends at the source."""
    running = adapter(tmp_path, source_weight=1.0, lr=0.1)
    source = state_of(running)
    running.step(inputs(seed_of("group"))["x"][0])
    np.testing.assert_allclose(state_of(running)["1.scale"], source["1.scale"], atol=1e-6)


def test_batch_norms_learn(tmp_path: Path) -> None:
    running = ttac.load(compiled(MODELS["resnet"], tmp_path, method="roid", batch=8, settings={"guard": "off"}))
    before = state_of(running)
    assert np.isfinite(running.step(samples((3, 16, 16), 8))).all() and running.stats["selected"] > 0
    after = state_of(running)
    assert any(np.abs(after[name] - before[name]).max() > 1e-4 for name in before if name.endswith(".scale"))


def test_signals_are_refused() -> None:
    assert "only images" in refused(UnsupportedError, MODELS["signal"], method="roid")
