"""FOA-I: single samples reach the same state as batches do with FOA, and are predicted with the prompts before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.adapted import inputs, model, seed_of
from tests.support.whole_models import MODELS, compiled, refused, samples, state_of
from ttac.errors import UnsupportedError

GIVEN = inputs(seed_of("layer"))
SETTINGS = {"candidates": 6, "seed": 1}


@pytest.mark.parametrize("batch", [1, 4])
def test_a_window_adapts_as_a_batch_does(batch: int, tmp_path: Path) -> None:
    """`foa` on batches of 8 is the oracle: its state after each batch, and its `predict` for the next one."""
    options = {"calibration": GIVEN["calibration"]}
    whole = ttac.load(compiled(model("layer"), tmp_path, method="foa", batch=8, settings=SETTINGS, **options))
    settings = {**SETTINGS, "interval": 8}
    single = ttac.load(compiled(model("layer"), tmp_path, method="foa-i", batch=batch, settings=settings, **options))
    for x in GIVEN["x"][:4]:
        found = np.concatenate([single.step(x[i : i + batch]) for i in range(0, 8, batch)])
        np.testing.assert_allclose(found, whole.predict(x), rtol=0, atol=1e-4)
        whole.step(x)
        after, expected = state_of(single), state_of(whole)
        np.testing.assert_array_equal(after["window.x"], x)
        for name, value in expected.items():
            np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-4, err_msg=name)
    assert single.stats["fitness"] == pytest.approx(whole.stats["fitness"], rel=1e-4)


def test_models_without_a_class_token_are_refused() -> None:
    message = refused(UnsupportedError, MODELS["resnet"], method="foa-i", calibration=samples((3, 16, 16), 32))
    assert "no class token" in message
