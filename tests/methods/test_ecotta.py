"""EcoTTA: steps and warm-up of a published code, a warm-up that goes on, and the compiles that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttac
from tests.support.official_batch_norms import stream
from tests.support.official_ecotta import SETTINGS, WARMUP, calibration, labels, official
from tests.support.surgeon_case import BATCH, model
from tests.support.whole_models import MODELS, compiled, refused, state_of
from ttac.errors import UnsupportedError, UsageError
from ttac.pipeline import compile_model


def adapter(folder: Path, settings: dict[str, Any]) -> ttac.Adapter:
    chosen = {"calibration": calibration(), "batch": BATCH, "settings": settings}
    return ttac.load(compiled(model("batch"), folder, method="ecotta", **chosen), threads=1)


@pytest.fixture(name="given")
def labels_file(tmp_path: Path) -> dict[str, Any]:
    np.save(tmp_path / "labels.npy", labels())
    return {**WARMUP, "warmup_labels": str(tmp_path / "labels.npy")}


@pytest.mark.parametrize("run", SETTINGS)
def test_six_steps_equal_the_published_code(run: str, tmp_path: Path) -> None:
    """`code` steps twice for each batch, `joint` once on both losses."""
    running, expected = adapter(tmp_path, SETTINGS[run]), official(run)
    logits, selected = [], []
    for x in stream():
        logits.append(running.step(x))
        selected.append(running.stats["selected"])
    assert selected == expected.pop("selected").tolist() and 0 < min(selected) < BATCH
    np.testing.assert_allclose(np.stack(logits), expected.pop("logits"), rtol=0, atol=1e-4)
    state = state_of(running)
    for name, value in expected.items():
        np.testing.assert_allclose(state[name], value, rtol=0, atol=1e-4, err_msg=name)


def test_the_warm_up_equals_the_published_code(given: dict[str, Any], tmp_path: Path) -> None:
    state = state_of(adapter(tmp_path, given))
    for name, value in official("warmup").items():
        np.testing.assert_allclose(state[name], value, rtol=0, atol=1e-4, err_msg=name)


def test_a_warm_up_goes_on_where_it_stopped(given: dict[str, Any], tmp_path: Path) -> None:
    kept = {**given, "warmup_file": str(tmp_path / "warmup.npz")}
    adapter(tmp_path, {**kept, "warmup_epochs": 1})
    lines: list[str] = []
    compile_model(
        model("batch"), method="ecotta", calibration=calibration(), batch=BATCH, settings=kept, output=tmp_path / "b.ttac",
        say=lines.append,
    )  # fmt: skip
    assert any("goes on after pass 1" in line for line in lines) and any("pass 3 of 3" in line for line in lines)
    assert not any("pass 1 of 3" in line for line in lines)
    state = state_of(ttac.load(tmp_path / "b.ttac"))
    for name, value in official("warmup").items():
        np.testing.assert_allclose(state[name], value, rtol=0, atol=1e-4, err_msg=name)
    message = refused(UsageError, model("batch"), method="ecotta", calibration=calibration()[:128], settings={
        **kept, "warmup_labels": "",
    })  # fmt: skip
    assert "another warm-up" in message


def test_the_compile_says_whose_labels_it_learns(tmp_path: Path) -> None:
    lines: list[str] = []
    compile_model(
        model("batch"), method="ecotta", calibration=calibration(), batch=BATCH, settings={"warmup_epochs": 1},
        output=tmp_path / "b.ttac", say=lines.append,
    )  # fmt: skip
    assert any("the labels that the model predicts" in line for line in lines)


def test_no_calibration_data_is_refused_with_other_methods() -> None:
    message = refused(UnsupportedError, MODELS["resnet"], method="ecotta")
    assert "source samples, and there are none" in message and "`tent`" in message


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", labels()[:-1])
    settings = {"warmup_labels": str(tmp_path / "few.npy")}
    message = refused(UsageError, model("batch"), method="ecotta", calibration=calibration(), settings=settings)
    assert "192 samples of 6 classes" in message
