"""The monitor beside the source: agreement, information, and an alarm with a bounded rate of false ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.conftest import Run
from tests.support.whole_models import compiled
from ttac.errors import UsageError

DEMO = Path(ttac.__file__).resolve().parent / "demo"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(DEMO / "fashion_vit.onnx", tmp_path_factory.mktemp("monitor"), method="tent", batch=16)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with np.load(DEMO / "fashion_stream.npz", allow_pickle=False) as arrays:
        return arrays["clean"][:64].astype(np.float32) / 255


def test_unadapted_predictions_agree(bundle: Path, images: np.ndarray) -> None:
    adapter, monitor = ttac.load(bundle), ttac.SourceMonitor(bundle, every=2)
    looked = [monitor.look(x, adapter.predict(x)) for x in images.reshape(4, 16, 1, 28, 28)]
    assert looked == [True, False, True, False]
    assert monitor.stats["compared"] == 2 and monitor.stats["source_agreement"] == 1
    assert abs(monitor.stats["information_gain"]) < 1e-5 and not monitor.stats["source_alarm"]


def test_the_alarm_comes_when_the_bound_passes(bundle: Path, images: np.ndarray) -> None:
    """With all predictions wrong, after t comparisons: 1 - sqrt(ln(t (t + 1) / 0.01) / 2t) > 0.5."""
    adapter, monitor, x = ttac.load(bundle), ttac.SourceMonitor(bundle, every=1), images[:16]
    other = -adapter.predict(x)
    due = next(t for t in range(1, 99) if 1 - math.sqrt(math.log(t * (t + 1) / 0.01) / (2 * t)) > 0.5)
    for step in range(1, due + 1):
        assert not monitor.stats["source_alarm"]
        monitor.look(x, other)
        assert monitor.stats["source_alarm"] == (step == due)
    assert monitor.stats["source_agreement"] == 0


def test_false_alarms_are_rare() -> None:
    """The same bound on coins of the tolerated rate, restated: fewer than 1 % of 2,000 streams ever alarm."""
    t = np.arange(1, 501)
    coins = np.random.default_rng(0).random((2000, 500)) < 0.5
    least = coins.cumsum(1) / t - np.sqrt(np.log(t * (t + 1) / 0.01) / (2 * t))
    assert (least > 0.5).any(1).mean() < 0.01


def test_a_collapse_loses_information(bundle: Path, images: np.ndarray) -> None:
    adapter, monitor, x = ttac.load(bundle), ttac.SourceMonitor(bundle, every=1), images[:16]
    monitor.look(x, np.zeros_like(adapter.predict(x)))
    assert monitor.stats["information_gain"] < -1


@pytest.mark.parametrize("numbers", [{"every": 0}, {"most": 1.0}, {"false_alarms": 0.0}])
def test_numbers_out_of_range_are_refused(bundle: Path, numbers: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        ttac.SourceMonitor(bundle, **numbers)  # type: ignore[arg-type]


def test_a_run_says_the_figures(bundle: Path, images: np.ndarray, tmp_path: Path, run: Run) -> None:
    np.save(tmp_path / "x.npy", images)
    seen = json.loads(run("run", str(bundle), str(tmp_path / "x.npy"), "--compare-source", "2", "--json").out)
    assert seen["compared"] == 2 and seen["source_agreement"] > 0.9
