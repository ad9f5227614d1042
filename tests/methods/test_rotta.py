"""RoTTA: steps of the published class, the memory, the teacher's prediction, bake, refusals, and the guard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

DEMO = Path(ttac.__file__).resolve().parent / "demo"
SMALL = Path(__file__).parents[2] / "benchmarks" / "small_nets" / "fashion_small.onnx"


def test_norms_without_averages_have_none_to_follow(tmp_path: Path) -> None:
    bundle = ttac.compile(
        DEMO / "fashion_resnet_gn.onnx",
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


def guarded(folder: Path, **settings: Any) -> ttac.Adapter:
    """Return an adapter of the small net with calibration data."""
    path = compiled(
        SMALL, folder, method="rotta", batch=BATCH, calibration=DEMO / "fashion_calibration.npz", settings=settings
    )
    return ttac.load(path, threads=1)


def clothes(kind: str = "clean") -> tuple[np.ndarray, np.ndarray]:
    """Return 256 images of the demo's stream, and their labels."""
    with np.load(DEMO / "fashion_stream.npz", allow_pickle=False) as arrays:
        return arrays[kind][:256].astype(np.float32) / 255, arrays["labels"][:256]


def error(adapter: ttac.Adapter, x: np.ndarray, labels: np.ndarray) -> float:
    """Return the error of `predict` in points."""
    logits = np.concatenate([adapter.predict(x[i : i + BATCH]) for i in range(0, len(x), BATCH)])
    return 100 * float(np.mean(logits.argmax(1) != labels))


def hot(x: np.ndarray) -> np.ndarray:
    spoiled = x.copy()
    spoiled[0, 0, 5, 5] = 1e10
    return spoiled


@pytest.mark.parametrize("guard", ["off", "on"])
def test_the_guard_bounds_a_hostile_stream(guard: str, tmp_path: Path) -> None:
    """Each kind carries information: the net is certain of huge values, and classes stay apart in negatives."""
    (x, labels), random = clothes(), np.random.default_rng(0)
    kinds = [lambda x: x * np.float32(1e6), lambda x: x * 255, hot, lambda x: 1 - x, lambda x: x + 3]
    adapter = guarded(tmp_path, guard=guard, interval=BATCH)
    before = error(adapter, x, labels)
    for step in range(80):
        batch = x[random.choice(len(x), BATCH, replace=False)]
        adapter.step(np.ascontiguousarray(kinds[step % len(kinds)](batch), np.float32))
    broken = error(adapter, x, labels)
    for _ in range(20):
        adapter.step(x[random.choice(len(x), BATCH, replace=False)])
    later = error(adapter, x, labels)
    assert max(broken, later) <= before + 1 if guard == "on" else min(broken, later) > before + 10


def test_batches_of_one_class_enter_the_memory(tmp_path: Path) -> None:
    """The guard holds no such batch of a shift, and learning is that of the method; clean images stay as before."""
    (x, labels), (clean, _), found = clothes("contrast"), clothes(), {}
    order = np.argsort(labels, kind="stable")
    for guard in ("off", "on"):
        adapter = guarded(tmp_path, guard=guard, interval=BATCH, statistics_momentum=0.2, guard_check=0)
        before, usual = error(adapter, x, labels), error(adapter, clean, labels)
        for start in range(0, len(x), BATCH):
            adapter.step(x[order[start : start + BATCH]])
        found[guard] = before - error(adapter, x, labels)
    assert adapter.stats["held"] == 0 and error(adapter, clean, labels) <= usual + 1
    assert found["on"] > 10 and found["on"] >= found["off"] - 1


@pytest.mark.parametrize("every", [0, 2])
def test_the_check_turns_a_spoiled_teacher_back(every: int, tmp_path: Path) -> None:
    """With long steps the teacher loses the classes of clean images, and a failed round gives it the compiled ones."""
    (x, labels), (shifted, _), random = clothes(), clothes("contrast"), np.random.default_rng(0)
    wild = {"optimizer": "sgd", "lr": 1.0, "teacher_decay": 0.0, "guard_radius": 10.0}
    adapter = guarded(tmp_path, guard="on", interval=BATCH, guard_check=every, **wild)
    before, filled = error(adapter, x, labels), list[float]()
    adapter.on_event = lambda event: filled.append(float(state_of(adapter)["memory.count"]))
    for _ in range(40):
        adapter.step(shifted[random.choice(len(x), BATCH, replace=False)])
    if every:
        assert adapter.stats["guard_returns"] == len(filled) > 0 and not any(filled)
        assert error(adapter, x, labels) <= before + 10
    else:
        assert error(adapter, x, labels) > before + 20
