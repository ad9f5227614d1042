"""Series [N, C, L]: the sensor example's data and faults, and every method on a 1-D network."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import ttac
from tests.conftest import Run
from tests.support.whole_models import MODELS, compiled, refused, samples
from ttac import methods
from ttac.errors import UnsupportedError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SERIES = (4, 32)
BATCH = 4


@pytest.fixture
def sensors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "sensor_data", raising=False)
    import sensor_data  # type: ignore[import-not-found, unused-ignore]

    return sensor_data


def test_a_file_of_series(sensors: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "some.ts"
    path.write_text("#about\n@data\n1,2,3:4,5,6:Running\n\n7,8,9:10,11,12:Badminton\n")
    series, labels = sensors.read(path)
    assert series.tolist() == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]] and labels.tolist() == [1, 3]
    assert series.dtype == np.float32


def test_windows_keep_their_series_and_label(sensors: ModuleType) -> None:
    series = np.arange(2 * 6 * 100, dtype=np.float32).reshape(2, 6, 100)
    found, labels = sensors.windows(series, np.array([2, 0]))
    assert found.shape == (14, 6, 64) and labels.tolist() == [2] * 7 + [0] * 7
    assert np.array_equal(found[8], series[1, :, 6:70])


def test_every_fault_is_the_same_every_time_and_grows(sensors: ModuleType) -> None:
    x = samples((6, 64), 40)
    for name in sensors.CORRUPTIONS:
        apart = []
        for severity in sensors.SEVERITIES:
            found = sensors.corrupted(x, name, severity)
            assert found.shape == x.shape and found.dtype == np.float32
            assert np.array_equal(found, sensors.corrupted(x, name, severity))
            apart.append(float(np.abs(found - x).mean()))
        assert 0 < apart[0] < apart[1] < apart[2], name


def test_each_fault_changes_the_series_as_described(sensors: ModuleType) -> None:
    x = samples((6, 64), 40)
    factor = sensors.corrupted(x, "gain", 2) / x
    np.testing.assert_allclose(factor, np.broadcast_to(factor[:, :1, :1], x.shape), rtol=1e-5)
    assert set(np.round(factor[:, 0, 0], 3)) == {0.5, 2.0}
    wander = sensors.corrupted(x, "drift", 3) - x
    np.testing.assert_allclose(np.diff(wander, n=2, axis=2), 0, atol=1e-5)
    held = sensors.corrupted(x, "dropout", 2)
    blocks = (held != x).any(axis=1).reshape(len(x), -1, 4).any(axis=2)
    assert 0.35 < blocks.mean() < 0.65
    assert all(
        np.ptp(held[row, :, 4 * b : 4 * b + 4], axis=1).max() == 0 for row, b in zip(*blocks.nonzero(), strict=True)
    )


IMAGES_ONLY = ("cotta", "deyo", "law", "roid", "rotta", "ttt")
NOT_HERE = ("ecotta", "foa", "foa-i", "sight")
"""Methods that need blocks between which one map goes on, a class token, or one sample a step."""


@pytest.mark.parametrize("method", IMAGES_ONLY)
def test_a_method_for_images_refuses_series(method: str, tmp_path: Path) -> None:
    said = refused(UnsupportedError, MODELS["signal"], output=tmp_path / "b.ttac", method=method)
    assert "only images can be augmented" in said and "[N, 4, 32]" in said


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in methods.names() if name not in (*IMAGES_ONLY, *NOT_HERE)])
def test_every_method_takes_series(method: str, tmp_path: Path) -> None:
    """Steps of full and of smaller batches, prediction, and a reset."""
    path = compiled(MODELS["signal"], tmp_path, method=method, batch=BATCH, calibration=samples(SERIES, 64, seed=5))
    adapter, x = ttac.load(path, threads=1), 2 * samples(SERIES, BATCH, seed=1)
    first = adapter.step(x)
    for n in range(max(2, adapter.smallest_batch), BATCH + 1):
        assert np.isfinite(adapter.step(x[:n])).all()
    assert adapter.stats["rejected"] == 0 and adapter.predict(x).shape == first.shape
    adapter.reset()
    np.testing.assert_allclose(adapter.step(x), first, rtol=0, atol=1e-6)


def test_the_command_line_takes_series(run: Run, tmp_path: Path) -> None:
    x = samples(SERIES, 6)
    np.savez(tmp_path / "series.npz", x=x, labels=np.zeros(6, np.int64))
    bundle = compiled(MODELS["signal"], tmp_path, method="leantta", batch=BATCH)
    seen = run("run", str(bundle), "series.npz", "-o", "out.npz", "--json")
    assert seen.code == 0, seen.err
    expected = ttac.load(bundle, threads=1)
    found = np.load(tmp_path / "out.npz")["logits"]
    np.testing.assert_allclose(found, np.concatenate([expected.step(x[:4]), expected.step(x[4:])]), rtol=0, atol=1e-6)
    assert run("inspect", str(MODELS["signal"])).code == 0
