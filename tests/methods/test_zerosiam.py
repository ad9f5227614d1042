"""ZeroSiam: steps of the published code, a reset that returns the matrix, the guard, and bake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.adapted import BATCH, KINDS, inputs, model, seed_of
from tests.support.official import SETTINGS, official, worst
from tests.support.whole_models import MODELS, compiled, refused, samples, state_of
from ttac import bake
from ttac.errors import UnsupportedError
from ttac.methods.zerosiam import METHOD
from ttac.settings import resolve
from ttac.spec import Facts

MATRIX = "predictor.matrix"


@pytest.mark.parametrize("kind", KINDS)
def test_five_steps_equal_the_published_code(kind: str, tmp_path: Path) -> None:
    assert worst("zerosiam", kind, tmp_path) < 2e-4  # 1.5e-4 by the rounding of a processor with AVX2 only
    matrix = official("zerosiam", kind)[f"after/{MATRIX}"]
    assert np.abs(matrix - np.eye(len(matrix))).max() > 0.01


@pytest.mark.parametrize(("kind", "batch", "rates"), [("batch", 64, (2.5e-3, 2.5e-2)), ("layer", 64, (5e-3, 5e-3))])
def test_the_rates_are_the_published_ones(kind: str, batch: int, rates: tuple[float, float]) -> None:
    settled = METHOD.settle(resolve(METHOD), Facts(batch, 10, frozenset({kind})))
    assert (settled["lr"], settled["predictor_lr"]) == pytest.approx(rates)


def test_the_guard_bounds_norms_and_not_the_matrix(tmp_path: Path) -> None:
    settings = {**SETTINGS["zerosiam"], "guard": "on", "guard_radius": 1e-4, "guard_information": 0.0}
    adapter = ttac.load(
        compiled(model("group"), tmp_path, method="zerosiam", batch=BATCH, norms="keep", settings=settings)
    )
    before = state_of(adapter)
    for x in inputs(seed_of("group"))["x"]:
        adapter.step(x)
    after = state_of(adapter)
    assert np.abs(after["1.scale"] - before["1.scale"]).max() < 1e-3 < np.abs(after[MATRIX] - before[MATRIX]).max()
    adapter.reset()
    np.testing.assert_array_equal(state_of(adapter)[MATRIX], np.eye(len(before[MATRIX])))


def test_bake_leaves_the_matrix_out(tmp_path: Path) -> None:
    """The prediction never reads the matrix, so an ordinary model holds all that was learned for it."""
    path = compiled(MODELS["resnet"], tmp_path, method="zerosiam", batch=8, settings={"statistics": "ema"})
    adapter = ttac.load(path)
    adapter.step(samples((3, 16, 16), 8))
    adapter.save(tmp_path / "state.safetensors")
    baked = bake.bake(path, tmp_path / "state.safetensors", tmp_path / "baked.onnx", force=True)
    assert baked.replaced["parameter"] == sum(name.endswith((".scale", ".bias")) for name in state_of(adapter))


def test_answers_of_yes_or_no_are_refused() -> None:
    message = refused(UnsupportedError, MODELS["resnet"], method="zerosiam", head="binary")
    assert "two predictions of a class" in message
