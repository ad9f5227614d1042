"""The check set in whole bundles: spoiled states turn back, healthy ones stay, and bundles without calibration have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttac
from ttac.runtime.events import Event
from ttac.runtime.tensors import map_tensors

DEMO = Path(ttac.__file__).resolve().parent / "demo"
BATCH = 16
WILD = {"optimizer": "sgd", "guard_radius": 10.0, "guard_information": 0.0}
"""With long steps, a few of them spoil the net; the guard's other parts do not interfere."""


def adapter(folder: Path, net: str = "fashion_resnet_bn", method: str = "tent", **settings: Any) -> ttac.Adapter:
    ttac.compile(
        DEMO / f"{net}.onnx",
        method=method,
        batch=BATCH,
        calibration=DEMO / "fashion_calibration.npz",
        settings=settings,
        output=folder / "b.ttac",
    )
    return ttac.load(folder / "b.ttac", threads=1)


def images(kind: str = "clean") -> np.ndarray:
    with np.load(DEMO / "fashion_stream.npz", allow_pickle=False) as arrays:
        return arrays[kind].astype(np.float32) / 255


def batches(x: np.ndarray, count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [x[random.choice(len(x), BATCH, replace=False)] for _ in range(count)]


def classes(adapted: ttac.Adapter, x: np.ndarray) -> np.ndarray:
    return np.concatenate([adapted.predict(x[i : i + BATCH]).argmax(1) for i in range(0, len(x), BATCH)])


@pytest.mark.parametrize(("train", "rate"), [("norms", 1.0), ("all", 0.05)])
def test_a_spoiled_state_turns_back(train: str, rate: float, tmp_path: Path) -> None:
    """The same steps with and without the check: only with it, the classes of clean images survive."""
    x, agreement, heard = images()[:256], {}, list[Event]()
    for every in (0, 2):
        folder = tmp_path / str(every)
        ttac.compile(
            DEMO / "fashion_resnet_bn.onnx",
            method="tent",
            batch=BATCH,
            calibration=DEMO / "fashion_calibration.npz",
            train=train,
            settings={**WILD, "lr": rate, "guard_check": every},
            output=folder / "b.ttac",
        )
        adapted = ttac.load(folder / "b.ttac", threads=1)
        adapted.on_event = heard.append
        before = classes(adapted, x)
        for batch in batches(images("contrast"), 40):
            adapted.step(batch)
        agreement[every] = float(np.mean(classes(adapted, x) == before))
        assert bool(adapted.stats.get("guard_returns")) == bool(every)
    assert agreement[0] < 0.6 and agreement[2] > 0.85
    assert {event.kind for event in heard} == {"return"}


def test_prototypes_of_broken_images_are_dropped(tmp_path: Path) -> None:
    """Directly after the failed round, the prototypes are the compiled ones, and the statistics rest."""
    x, adapted = images()[:256], adapter(tmp_path, method="t3a", guard_check=4, guard_loss=0.0)
    before, kept = classes(adapted, x), list[bool]()

    def compare(event: Event) -> None:
        if event.kind == "return":
            kept.append(np.array_equal(classes(adapted, x), before))

    adapted.on_event = compare
    for batch in batches(1 - images(), 80):
        adapted.step(batch)
    assert kept and all(kept)
    assert adapted.stats["guard_returns"] == len(kept)


def test_a_restored_state_announces_only_its_own_returns(tmp_path: Path) -> None:
    """The state counts the returns of all streams, an event is one return of this one."""
    first, heard = adapter(tmp_path, method="t3a", guard_check=4, guard_loss=0.0), list[Event]()
    for batch in batches(1 - images(), 80):
        first.step(batch)
    before = first.stats["guard_returns"]
    first.save(tmp_path / "state.safetensors")
    second = ttac.load(tmp_path / "b.ttac", threads=1)
    second.on_event = heard.append
    second.restore(tmp_path / "state.safetensors")
    for batch in batches(images(), 40):
        second.step(batch)
    assert before > 0 and "check_loss" in second.stats
    assert second.stats["guard_returns"] - before == len([event for event in heard if event.kind == "return"])


def test_a_healthy_stream_never_turns_back(tmp_path: Path) -> None:
    adapted = adapter(tmp_path, "fashion_vit")
    for batch in batches(images(), 320):
        adapted.step(batch)
    assert adapted.stats["guard_returns"] == 0
    assert 0 <= adapted.stats["check_loss"] < 0.01


def test_a_step_that_checks_learns_nothing(tmp_path: Path) -> None:
    adapted, (x, *_) = adapter(tmp_path, "fashion_resnet_gn", guard_check=3), batches(images(), 1)
    changed = []
    for _ in range(6):
        before = adapted.predict(x)
        adapted.step(x)
        changed.append(not np.array_equal(before, adapted.predict(x)))
    assert changed == [True, True, False, True, True, False]


def test_a_bundle_without_calibration_has_no_check_set(tmp_path: Path) -> None:
    bundle = ttac.compile(DEMO / "fashion_resnet_gn.onnx", batch=BATCH, output=tmp_path / "b.ttac")
    assert not any(name.startswith(("guard-check", "guard-samples")) for name in bundle.manifest["graphs"])


def test_the_seed_of_the_estimate_needs_no_check(tmp_path: Path) -> None:
    """Predictions of `bn` depend on statistics of norms only, which the check does not judge."""
    adapted = adapter(tmp_path, "fashion_resnet_bn_unfolded", "bn", statistics="ema", estimate=3)
    assert not any(name.startswith("guard-check") for name in adapted.bundle.manifest["graphs"])


@pytest.mark.parametrize(("method", "rests"), [("t3a", True), ("zoa", False)])
def test_statistics_rest_where_nothing_trains(method: str, rests: bool, tmp_path: Path) -> None:
    """`zoa` trains without a loss: its norms turn back, so its statistics need no rest."""
    tensors = adapter(tmp_path, method=method).bundle.manifest["state"]["tensors"]
    assert ("guard.strikes" in {entry["name"] for entry in tensors}) == rests


@pytest.mark.parametrize("settings", [{}, {"guard_check": 10}], ids=["default", "stated"])
def test_a_stated_interval_without_calibration_is_noted(settings: dict[str, int], tmp_path: Path) -> None:
    lines = list[str]()
    net = DEMO / "fashion_resnet_gn.onnx"
    ttac.compile(net, batch=BATCH, settings=settings, output=tmp_path / "b.ttac", say=lines.append)
    noted = [line for line in lines if "`guard_check` has no effect" in line]
    assert len(noted) == bool(settings) and all("`--calibration PATH`" in line for line in noted)


def test_few_samples_make_no_check_set(tmp_path: Path) -> None:
    lines = list[str]()
    with np.load(DEMO / "fashion_calibration.npz", allow_pickle=False) as arrays:
        np.savez(tmp_path / "few.npz", **{name: array[:12] for name, array in arrays.items()})
    ttac.compile(
        DEMO / "fashion_resnet_gn.onnx",
        batch=BATCH,
        calibration=tmp_path / "few.npz",
        output=tmp_path / "b.ttac",
        say=lines.append,
    )
    assert any("16 samples in whole batches are needed, 12 are given" in line for line in lines)


def test_the_set_is_small(tmp_path: Path) -> None:
    """256 images of 784 bytes, and a class for each."""
    adapter(tmp_path)
    tensors, _ = map_tensors(tmp_path / "b.ttac" / "weights.safetensors")
    (images_kept,) = (array for array in tensors.values() if array.dtype == np.uint8 and array.ndim == 4)
    assert images_kept.shape == (256, 1, 28, 28)
