"""RoTTA: steps of the published class, the memory, the teacher's prediction, bake, and the models that it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import ttac
from tests.support.official_rotta import BATCH, SETTINGS, official, stream, trajectory
from tests.support.surgeon_case import model
from tests.support.whole_models import MODELS, compiled, refused, samples, state_of
from ttac import bake
from ttac.errors import UnsupportedError
from ttac.passes.adapt import running_averages


def test_norms_without_averages_have_none_to_follow(tmp_path: Path) -> None:
    bundle = ttac.compile(
        Path(ttac.__file__).parent / "demo" / "fashion_resnet_gn.onnx",
        method="rotta",
        batch=4,
        settings={"interval": 4},
        output=tmp_path / "b.ttac",
    )
    assert "follow_memory" not in bundle.manifest["graphs"]
    adapter = ttac.load(bundle.path, threads=1)
    assert np.isfinite(adapter.step(np.random.default_rng(0).random((4, 1, 28, 28), np.float32))).all()


def test_eight_steps_equal_the_published_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits, memory, and tensors and averages of both; the class does not bound its averages, so ttac does not here."""
    monkeypatch.setattr(running_averages, "FARTHEST", 1e3)
    monkeypatch.setattr(running_averages, "REACH", 1e3)
    found, expected = trajectory(tmp_path), official()
    assert expected["filled"].tolist() == [7, 11, *[12] * 6] == found["filled"].tolist()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name.removeprefix("after/")], value, rtol=0, atol=1e-4, err_msg=name)
    assert np.abs(found["1.scale"] - found["teacher.1.scale"]).max() > 1e-2


@pytest.mark.parametrize("batch", [8, 1])
def test_smaller_batches_give_the_same_memory(batch: int, tmp_path: Path) -> None:
    """Of the same predictions: without learning, the order of the samples decides, not their batches."""
    still = {"lr": 0.0, "statistics_momentum": 0.0}
    found, expected = (trajectory(tmp_path, size, **still) for size in (batch, BATCH))
    for name in ("memory.images", "memory.ages", "memory.classes", "filled"):
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=1e-5)


def test_the_student_learns_once_an_interval(tmp_path: Path) -> None:
    path = compiled(model("batch"), tmp_path, method="rotta", batch=BATCH, settings={**SETTINGS, "interval": 40})
    adapter, moved = ttac.load(path, threads=1), []
    before = state_of(adapter)
    for x in stream():
        adapter.step(x)
        after = state_of(adapter)
        moved.append(not np.array_equal(after["1.scale"], before["1.scale"]))
        assert moved[-1] == (not np.array_equal(after["teacher.1.mean"], before["teacher.1.mean"]))
        before = after
    assert moved == [False, False, True, False, True, False, False, True]


def test_insertions_limit_the_samples_of_a_step(tmp_path: Path) -> None:
    """All 16 samples fill seven places; three fill at most three, with the first samples of the batch."""
    path = compiled(model("batch"), tmp_path, method="rotta", batch=BATCH, settings={**SETTINGS, "insertions": 3})
    adapter = ttac.load(path, threads=1)
    adapter.step(stream()[0])
    filled, kept = int(adapter.stats["memory"]), state_of(adapter)["memory.images"]
    assert 1 <= filled <= 3
    assert all(any(np.array_equal(image, given) for given in stream()[0][:3]) for image in kept[:filled])


def test_the_prediction_is_the_teachers_and_bakes(tmp_path: Path) -> None:
    path = compiled(model("batch"), tmp_path, method="rotta", batch=BATCH, norms="keep", settings=SETTINGS)
    adapter = ttac.load(path, threads=1)
    for x in stream():
        predicted = adapter.predict(x)
        np.testing.assert_array_equal(adapter.step(x), predicted)
    adapter.save(tmp_path / "state.safetensors")
    baked = bake.bake(path, tmp_path / "state.safetensors", tmp_path / "baked.onnx", force=True)
    session = onnxruntime.InferenceSession(baked.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": stream()[0]})
    np.testing.assert_allclose(found, adapter.predict(stream()[0]), rtol=0, atol=1e-4)
    adapter.reset()
    first = adapter.step(stream()[0])
    assert np.abs(first - found).max() > 1e-2


def test_other_models_are_refused() -> None:
    message = refused(UnsupportedError, MODELS["signal"], method="rotta", calibration=samples((4, 32), 16))
    assert "only images can be augmented" in message and "--method tent" in message
