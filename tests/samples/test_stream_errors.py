"""The errors and entropies that a stream reports, for each head."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.conftest import Run
from tests.support.head_cases import (
    BATCH,
    entropy_of,
    inputs,
    model,
    seed_of,
)
from tests.support.tiny_bundles import ema, read, reseal
from tests.support.whole_models import compiled, samples
from ttac.errors import UsageError
from ttac.runtime.records import HeadSpec
from ttac.samples.predictions import Tally, decisions, entropies, fit_labels

LOGITS, PROBABILITIES = (
    HeadSpec(kind="binary", axis=1, values="logits"),
    HeadSpec(kind="binary", axis=1, values="probabilities"),
)


def stream(kind: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Samples and the source's outputs for them."""
    x = np.concatenate(inputs(seed_of(kind))["x"])
    adapter = ttac.load(compiled(model(kind), folder, method="source", batch=BATCH), threads=1)
    return x, np.concatenate([adapter.predict(x[i : i + BATCH]) for i in range(0, len(x), BATCH)])


def test_run_reports_the_error_of_pixels(run: Run, tmp_path: Path) -> None:
    x, y = stream("group", tmp_path)
    labels = y.argmax(1)
    labels[:, :3] = (labels[:, :3] + 1) % 4
    labels[:, 3:6] = 255
    np.savez(tmp_path / "x.npz", x=x, labels=labels)
    folder = next(tmp_path.glob("*.ttac"))
    report = json.loads(run("run", str(folder), "x.npz", "--json").out)
    assert report["error"] == pytest.approx(3 / 9, abs=1e-6)
    assert report["mean_entropy"] == pytest.approx(entropy_of(y, read(folder)["head"]), rel=1e-4)
    np.savez(tmp_path / "x.npz", x=x, labels=labels[:, 0, 0])
    seen = run("run", str(folder), "x.npz")
    assert seen.code == 2 and "labels of 4 samples have shape [4], the predictions [4, 12, 12]" in seen.err


def test_run_reports_the_error_of_answers(run: Run, tmp_path: Path) -> None:
    x, y = stream("binary", tmp_path)
    labels = (y[:, 0] > 0).astype(int)
    labels[:3] = 1 - labels[:3]
    np.savez(tmp_path / "x.npz", x=x, labels=labels)
    report = json.loads(run("run", str(next(tmp_path.glob("*.ttac"))), "x.npz", "--json", "-o", "y.npz").out)
    assert report["error"] == pytest.approx(3 / 12)
    with np.load(tmp_path / "y.npz") as arrays:
        np.testing.assert_array_equal(arrays["logits"], y)


def test_run_says_when_it_cannot_tell_an_error(run: Run, tmp_path: Path) -> None:
    ema(tmp_path / "tiny.ttac")
    reseal(tmp_path / "tiny.ttac", {**read(tmp_path / "tiny.ttac"), "head": None})
    np.savez(tmp_path / "x.npz", x=samples((3,), 8), labels=np.zeros(8, int))
    seen = run("run", "tiny.ttac", "x.npz", "--json")
    assert seen.code == 0 and "compile with `--head`" in seen.err
    assert {"error", "mean_entropy"} & set(json.loads(seen.out)) == set()


def test_entropy_in_nats() -> None:
    assert entropies(np.zeros((3, 10), np.float32)) == pytest.approx([np.log(10)] * 3)
    assert entropies(np.array([[1e4, 0.0]], np.float32)) == pytest.approx([0])
    certain = HeadSpec(kind="classes", axis=1, values="probabilities")
    assert entropies(np.array([[1.0, 0.0], [0.5, 0.5]], np.float32), certain) == pytest.approx([0, np.log(2)])
    answers = np.array([[0.0], [1e4], [np.log(3)]], np.float32)
    expected = [np.log(2), 0, np.log(4) - 0.75 * np.log(3)]
    assert entropies(answers, LOGITS)[:, 0] == pytest.approx(expected, abs=1e-6)
    shares = np.array([[0.5], [1.0], [0.75]], np.float32)
    assert entropies(shares, PROBABILITIES)[:, 0] == pytest.approx(expected, abs=1e-6)


def test_decisions_and_their_error() -> None:
    y = np.array([[-1.0, 2.0], [0.4, 0.6]], np.float32)
    np.testing.assert_array_equal(decisions(y, LOGITS), [[0, 1], [1, 1]])
    np.testing.assert_array_equal(decisions(y, PROBABILITIES), [[0, 1], [0, 1]])
    tally = Tally(head=LOGITS)
    tally.add(y, fit_labels(np.array([[0, 1], [0, 1]]), y.shape, LOGITS))
    assert (tally.wrong, tally.labelled, tally.error) == (1, 4, 0.25)
    assert fit_labels(np.zeros((2, 1)), (2, 1), LOGITS).shape == (2,)
    assert fit_labels(np.zeros(2), (2, 3, 1, 1), HeadSpec(kind="dense", axis=1, values="logits")).shape == (2, 1, 1)
    with pytest.raises(UsageError, match=r"have shape \[2\], the predictions \[2, 2\]"):
        fit_labels(np.zeros(2), y.shape, LOGITS)
