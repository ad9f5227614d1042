"""FOA: steps of the published code, the strategy, 8 bits, bake, and the models and batches that it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.adapted import inputs, model, seed_of
from tests.support.official import SETTINGS, official, trajectory
from tests.support.whole_models import MODELS, compiled, refused, samples, state_of
from ttac import bake, demo
from ttac.errors import UnsupportedError, UsageError
from ttac.methods.foa.evolution import rates
from ttac.methods.foa.prompts import PROMPTS

CALIBRATION = inputs(seed_of("layer"))["calibration"]
EFFECTIVE = 7.82476262
CONSTANTS = (3.76334866e-07, 2.33282342e-06, 0.00173456862, 0.00424427921, -1.16132163)
"""The effective number of parents; rates of rank one and rank many, of both paths, and the sum of negative weights."""
SMALL = {"candidates": 4, "seed": 1}


def test_five_steps_equal_the_published_code(tmp_path: Path) -> None:
    """Logits, prompts, the stream's mean, and the whole state of the strategy."""
    found, expected = trajectory("foa", "layer", tmp_path, calibration=CALIBRATION), official("foa", "layer")
    expected.pop("fitness")
    for name, value in expected.items():
        np.testing.assert_allclose(found[name.removeprefix("after/")], value, rtol=0, atol=1e-4, err_msg=name)
    assert np.abs(expected["after/evolution.mean"]).max() > 1 and SETTINGS["foa"]["prompts"] == 6


def test_the_constants_are_those_of_the_library() -> None:
    """Of `cma` 4.5 for 2304 numbers and 27 candidates."""
    rate = rates(2304, 27)
    assert rate.parents == 13 and rate.effective == pytest.approx(EFFECTIVE, rel=1e-6)
    found = (rate.rank_one, rate.rank_many, rate.path, rate.sigma_path, float(rate.weights[14:].sum()))
    assert found == pytest.approx(CONSTANTS, rel=1e-5)


def test_a_reset_repeats_the_stream_and_bake_refuses(tmp_path: Path) -> None:
    path = compiled(model("layer"), tmp_path, method="foa", batch=8, calibration=CALIBRATION, settings=SMALL)
    adapter, x = ttac.load(path, threads=1), inputs(seed_of("layer"))["x"]
    initial = state_of(adapter)
    first = [adapter.step(batch) for batch in x[:3]]
    assert not np.array_equal(state_of(adapter)[PROMPTS], initial[PROMPTS])
    predicted = adapter.predict(x[3])
    np.testing.assert_array_equal(adapter.predict(x[3]), predicted)
    adapter.save(tmp_path / "state.safetensors")
    with pytest.raises(UnsupportedError, match="the source model has no tensor of that name"):
        bake.bake(path, tmp_path / "state.safetensors", tmp_path / "baked.onnx")
    adapter.reset()
    np.testing.assert_array_equal([adapter.step(batch) for batch in x[:3]], first)


def test_the_prediction_is_that_of_the_best_candidate(tmp_path: Path) -> None:
    """Without a shift, `predict` after a step repeats the logits of the step: both take the best prompts."""
    settings = {**SMALL, "shift": 0.0}
    path = compiled(model("layer"), tmp_path, method="foa", batch=8, calibration=CALIBRATION, settings=settings)
    adapter = ttac.load(path, threads=1)
    for x in inputs(seed_of("layer"))["x"]:
        np.testing.assert_allclose(adapter.step(x), adapter.predict(x), rtol=0, atol=1e-5)
        assert np.isfinite(adapter.stats["fitness"])


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_shifted_stream_errs_less_than_the_source(quantize: str | None, tmp_path: Path) -> None:
    """Four batches of a contrast that the shipped transformer does not know."""
    with np.load(demo.file("fashion_stream.npz")) as stream:
        x, labels = stream["contrast"][:256].astype(np.float32) / 255, stream["labels"][:256]
    options = {"batch": 64, "calibration": demo.file("fashion_calibration.npz"), "quantize": quantize}
    adapter = ttac.load(compiled(demo.file("fashion_vit.onnx"), tmp_path, method="foa", **options))
    source = ttac.load(compiled(demo.file("fashion_vit.onnx"), tmp_path, method="source", **options))
    wrong = [
        np.mean(np.concatenate([a.step(x[i : i + 64]) for i in range(0, 256, 64)]).argmax(1) != labels)
        for a in (adapter, source)
    ]
    assert wrong[0] < wrong[1] - 0.1


def test_a_smaller_batch_is_taken(tmp_path: Path) -> None:
    path = compiled(model("layer"), tmp_path, method="foa", batch=8, calibration=CALIBRATION, settings=SMALL)
    adapter = ttac.load(path, threads=1)
    assert all(np.isfinite(adapter.step(inputs(0)["x"][0][:n])).all() for n in (3, 1, 8))


def test_other_models_and_steps_are_refused(tmp_path: Path) -> None:
    message = refused(UnsupportedError, MODELS["resnet"], method="foa", calibration=samples((3, 16, 16), 32))
    assert "no class token" in message and "--method neo" in message
    message = refused(UnsupportedError, model("layer"), method="foa", batch=1, calibration=CALIBRATION)
    assert "--batch 16" in message
    message = refused(UsageError, model("layer"), method="foa")
    assert "--calibration PATH" in message
