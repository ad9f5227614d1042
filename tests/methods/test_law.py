"""LAW: steps of the published code, the rates of tensors, held batches, and the models that it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.adapted import BATCH, KINDS, inputs, model, seed_of
from tests.support.official import SETTINGS, official, worst
from tests.support.whole_models import MODELS, compiled, refused, samples, state_of
from ttac.errors import UnsupportedError


@pytest.mark.parametrize("run", ["law", "law-exponent"])
@pytest.mark.parametrize("kind", KINDS)
def test_five_steps_equal_the_published_code(kind: str, run: str, tmp_path: Path) -> None:
    assert worst(run, kind, tmp_path) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_runs_learn(kind: str) -> None:
    """The run with the higher rate ends with scores that differ by more than the bound of the comparison."""
    slow, fast = (official(run, kind)["logits"][-1] for run in ("law", "law-exponent"))
    assert np.abs(slow - fast).max() > 0.05


def test_one_tensor_stays_and_one_moves_by_the_rate(tmp_path: Path) -> None:
    """The tensor of least information has the rate 0; a number of the tensor of most information moves by lr."""
    chosen = {**SETTINGS["law"], "lr": 0.01}
    running = ttac.load(
        compiled(model("group"), tmp_path, method="law", batch=BATCH, norms="keep", settings=chosen), threads=1
    )
    before = state_of(running)
    running.step(inputs(seed_of("group"))["x"][0])
    after = state_of(running)
    moved = [float(np.abs(after[name] - before[name]).max()) for name in before if name.endswith((".scale", ".bias"))]
    assert min(moved) == 0 and max(moved) == pytest.approx(0.01, rel=1e-3)


def test_a_held_batch_changes_no_information(tmp_path: Path) -> None:
    """The guard holds a batch of one repeated sample before any gradient."""
    wide, calibration = {"black": "-6", "white": "6", "guard": "on"}, samples((3, 16, 16), 64, seed=4)
    bundle = compiled(MODELS["resnet"], tmp_path, method="law", batch=16, calibration=calibration, settings=wide)
    running = ttac.load(bundle, threads=1)
    running.step(np.repeat(samples((3, 16, 16), 1), 16, axis=0))
    assert running.stats["held"] == 1 and not state_of(running)["fisher.mean"].any()


def test_batch_norms_learn(tmp_path: Path) -> None:
    running = ttac.load(compiled(MODELS["resnet"], tmp_path, method="law", batch=8, settings={"guard": "off"}))
    before = state_of(running)
    for _ in range(2):
        assert np.isfinite(running.step(samples((3, 16, 16), 8))).all()
    after = state_of(running)
    assert (after["fisher.mean"] > 0).all() and running.stats["rejected"] == 0
    assert any(np.abs(after[name] - before[name]).max() > 1e-4 for name in before if name.endswith(".scale"))


def test_signals_are_refused() -> None:
    assert "only images" in refused(UnsupportedError, MODELS["signal"], method="law")
