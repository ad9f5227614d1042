"""`ttac run` and `ttac inspect` on a hand-made bundle, compared with its expected numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Run
from tests.support.tiny_bundles import PLANNED, ema, ema_expected
from ttac.runtime.adapter import Adapter

SAMPLES = np.random.default_rng(0).random((10, 3), np.float32)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    """A bundle, samples with labels, and samples that do not fit."""
    ema(tmp_path / "tiny.ttac")
    np.savez(tmp_path / "x.npz", x=SAMPLES, labels=np.arange(10) % 2, again=SAMPLES[:1])
    np.savez(tmp_path / "named.npz", x=SAMPLES, labels=np.array(["no", "ok"] * 5))
    np.save(tmp_path / "wrong.npy", np.zeros((4, 5), np.float32))
    return tmp_path


def stepped(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits of all samples, batch by batch, and the last mean."""
    parts = []
    for start in range(0, len(SAMPLES), PLANNED):
        logits, mean = ema_expected(SAMPLES[start : start + PLANNED], mean)
        parts.append(logits)
    return np.concatenate(parts), mean


def test_a_stream_and_its_state(run: Run, folder: Path) -> None:
    seen = run("run", "tiny.ttac", "x.npz", "-o", "out.npz", "--save-state", "s.safetensors")
    assert (seen.code, seen.err) == (0, "note: the samples are the array `x`; `--array` names another\n")
    told = {name.strip(): value.strip() for name, value in (line.split("  ", 1) for line in seen.out.splitlines())}
    assert list(told) == [
        "samples",
        "seconds",
        "ms per sample",
        "mean entropy",
        "rejected steps",
        "error",
        "output",
        "state",
    ]
    expected, mean = stepped(np.array([0.5, 0, -0.5], np.float32))
    with np.load("out.npz") as arrays:
        np.testing.assert_allclose(arrays["logits"], expected, rtol=1e-5, atol=1e-6)
    assert told["error"] == f"{100 * np.mean(expected.argmax(axis=1) != np.arange(10) % 2):.2f} %"
    further = json.loads(run("run", "tiny.ttac", "x.npz", "--state", "s.safetensors", "-o", "more.npz", "--json").out)
    assert further["samples"] == 10
    with np.load("more.npz") as arrays:
        np.testing.assert_allclose(arrays["logits"], stepped(mean)[0], rtol=1e-5, atol=1e-6)


def test_a_bundle_replaced_before_the_load_counts_alone(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planned batch comes from the loaded bundle, not from an earlier read of the folder."""
    original = Adapter.__init__

    def replaced(self: Adapter, *arguments: Any, **more: Any) -> None:
        manifest = json.loads((folder / "tiny.ttac" / "manifest.json").read_text())
        manifest["batch"]["planned"] = 2
        (folder / "tiny.ttac" / "manifest.json").write_text(json.dumps(manifest))
        original(self, *arguments, **more)

    monkeypatch.setattr(Adapter, "__init__", replaced)
    assert "is planned for 2 samples a step" in run("run", "tiny.ttac", "x.npz", "--batch", str(PLANNED)).err


def test_without_adapting_the_state_stays(run: Run, folder: Path) -> None:
    report = json.loads(run("run", "tiny.ttac", "x.npz", "--no-adapt", "-o", "out.npz", "--batch", "3", "--json").out)
    assert report["samples"] == 10 and report["rejected_steps"] == 0
    expected, _ = ema_expected(SAMPLES, np.array([0.5, 0, -0.5], np.float32))
    with np.load("out.npz") as arrays:
        np.testing.assert_allclose(arrays["logits"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("tiny.ttac none.npz", "error: there is no such input\n  at `none.npz`\n"),
        ("tiny.ttac wrong.npy", "error: samples have shape [5], the model takes [3]\n  at `wrong.npy`\n"),
        ("tiny.ttac x.npz --array agan", "error: the archive has no array `agan`\n  at `x.npz`\n"),
        ("tiny.ttac x.npz --batch 5", "error: the bundle is planned for 4 samples a step\n  at `--batch 5`\n"),
        ("tiny.ttac x.npz --array x --state x.npz", "error: the file is not a state\n  at `x.npz`\n"),
        ("tiny.ttac named.npz", "error: the labels are `<U2`, not class numbers\n  at `named.npz`\n"),
        ("tiny.ttac x.npz --array x --state none", "error: there is no such state\n  at `none`\n"),
        ("tiny.ttac x.npz -o none/out.npz", "error: the folder does not exist\n  at `none/out.npz`\n"),
        ("tiny.ttac x.npz --save-state none/s", "error: the folder does not exist\n  at `none/s`\n"),
        ("x.npz x.npz", "error: the path is a file, not a bundle\n  at `x.npz`\n"),
    ],
)
def test_run_refuses_wrong_usage(run: Run, arguments: str, message: str) -> None:
    seen = run("run", *arguments.split())
    assert (seen.code, seen.out) == (2, "") and seen.err.startswith(message) and "\nhint: " in seen.err


def test_a_changed_file_is_refused(run: Run, folder: Path) -> None:
    with (folder / "tiny.ttac" / "forward.onnx").open("ab") as file:
        file.write(b" ")
    for command in (["run", "tiny.ttac", "x.npz"], ["inspect", "tiny.ttac"]):
        seen = run(*command)
        assert (seen.code, seen.out) == (6, "") and "forward.onnx" in seen.err


def test_inspect_shows_a_bundle(run: Run, folder: Path) -> None:
    seen = run("inspect", "tiny.ttac")
    assert (seen.code, seen.err) == (0, "")
    assert seen.out.splitlines()[:15] == [
        "`tiny` on `tiny.onnx`: no norm adapts",
        "up to 4 samples a step: x float32 [N, 3] -> logits float32 [N, 2]",
        "not executed by an engine yet",
        "next: ttac run tiny.ttac SAMPLES.npz",
        "",
        "bundle         tiny.ttac",
        "method         tiny",
        "target         cpu (opset 18)",
        "source         tiny.onnx",
        "input          x float32 [N, 3]",
        "output         logits float32 [N, 2]",
        "head           classes, logits, axis 1 of `logits`",
        "batch          4",
        "norm sites     0, 0 trained, 0 inserted",
        "state tensors  2",
    ]
    found = json.loads(run("inspect", "tiny.ttac", "--json").out)
    assert found["bundle"] == "tiny.ttac" and found["report"] == {"plan": []}
    assert found["manifest"]["method"] == {"name": "tiny", "settings": {"lr": 0.5}}


def test_a_stop_keeps_the_adapted_state(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second step: the state after the first step is saved."""
    step, calls = Adapter.step, []

    def interrupted(self: Adapter, x: object) -> object:
        calls.append(x)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(self, x)  # type: ignore[arg-type]

    monkeypatch.setattr(Adapter, "step", interrupted)
    stopped = run("run", "tiny.ttac", "x.npz", "--save-state", "s.safetensors")
    assert stopped.code == 130 and "the state after 4 samples is in `s.safetensors`" in stopped.err
    monkeypatch.undo()
    run("run", "tiny.ttac", "x.npz", "--state", "s.safetensors", "--no-adapt")


def test_a_sample_that_is_not_finite_is_counted(run: Run) -> None:
    bad = SAMPLES.copy()
    bad[-1] = np.nan
    np.savez("bad.npz", x=bad, labels=np.arange(10) % 2)
    report = json.loads(
        run("run", "tiny.ttac", "bad.npz", "-o", "o.npz", "--save-state", "s", "--save-every", "1", "--json").out
    )
    with np.load("o.npz") as arrays:
        finite = np.isfinite(arrays["logits"]).all(axis=1)
    assert list(finite) == [True] * 9 + [False] and report["not_finite"] == 1
    assert report["mean_entropy"] is not None and report["error"] is not None
