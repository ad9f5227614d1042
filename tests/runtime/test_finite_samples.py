"""Samples that are not finite, a fork, and saves during a stream."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support import tiny_bundles as tiny
from ttac.errors import RuntimeMissingError, UsageError
from ttac.runtime.adapter import Adapter


@pytest.fixture
def ema(tmp_path: Path) -> Adapter:
    return ttac.load(tiny.ema(tmp_path / "b"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_step_runs_without_the_bad_sample(ema: Adapter, tmp_path: Path, value: float) -> None:
    x, other = tiny.batch(), ttac.load(tmp_path / "b")
    bad = x.copy()
    bad[1, 2] = value
    expected, logits = other.step(x[[0, 2, 3]]), ema.step(bad)
    np.testing.assert_array_equal(logits[[0, 2, 3]], expected)
    assert np.isnan(logits[1]).all() and ema.stats["not_finite"] == 1 and ema.stats["samples"] == 4
    for name, array in tiny.state_of(other).items():
        np.testing.assert_array_equal(tiny.state_of(ema)[name], array)
    np.testing.assert_array_equal(ema.predict(bad)[[0, 2, 3]], other.predict(x[[0, 2, 3]]))


def test_a_batch_without_a_finite_sample_changes_nothing(ema: Adapter) -> None:
    before = tiny.state_of(ema)
    logits = ema.step(np.full((3, 3), np.nan, np.float32))
    assert logits.shape == (3, 2) and np.isnan(logits).all()
    assert ema.stats["not_finite"] == 3 and ema.stats["rejected"] == 0
    np.testing.assert_array_equal(before["mean"], tiny.state_of(ema)["mean"])
    assert np.isnan(ema.step(np.full((1, 3), 1e300))).all(), "float64 that overflows"


def test_too_few_finite_samples_predict_without_learning(tmp_path: Path) -> None:
    folder = tiny.ema(tmp_path / "b")
    tiny.change(folder, "batch/smallest", 3)
    adapter, x = ttac.load(folder), tiny.batch()
    expected, before = adapter.predict(x), tiny.state_of(adapter)
    x[:2] = np.nan
    logits = adapter.step(x)
    np.testing.assert_allclose(logits[2:], expected[2:], rtol=1e-6)
    assert np.isnan(logits[:2]).all()
    np.testing.assert_array_equal(before["mean"], tiny.state_of(adapter)["mean"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_an_error(ema: Adapter) -> None:
    x = tiny.batch()
    ema.step(x)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with ema._lock:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe()

    def child() -> None:
        try:
            ema.predict(x)
        except RuntimeMissingError as error:
            send.send(str(error))
        os._exit(0)

    process = fork.Process(target=child)
    process.start()
    assert receive.poll(30)
    assert "the adapter belongs to the parent process" in receive.recv()
    process.join()
    leave.set()
    thread.join()
    ema.predict(x)


def test_autosave_after_each_second_step(ema: Adapter, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, x = tmp_path / "s.safetensors", tiny.batch()
    ema.autosave(file, every=2)
    ema.step(x)
    assert not file.exists()
    ema.step(x)
    saved = tiny.state_of(ema)
    ema.step(x)
    ema.restore(file)
    np.testing.assert_array_equal(saved["mean"], tiny.state_of(ema)["mean"])
    ema.autosave(tmp_path / "none" / "s.safetensors", every=1)
    ema.step(x)
    assert "the state is not saved: cannot write the file" in caplog.text
    with pytest.raises(UsageError, match="not a count"):
        ema.autosave(file, every=-1)
