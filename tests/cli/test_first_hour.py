"""Small things that a new user meets: the next command, a closed pipe, JSON without numbers, a careless output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Run
from tests.support.source_models import saved, source
from tests.support.tiny_bundles import ema, read
from ttac.cli.terminal import finite
from ttac.reports.progress import ROOMS, room_after
from ttac.runtime import load
from ttac.runtime.hash_check import digest_of


@pytest.mark.usefixtures("unmeasured")
def test_compile_names_the_next_command_and_the_processor(run: Run, tmp_path: Path) -> None:
    model = saved(source(), tmp_path)
    seen = run("compile", str(model), "--method", "bn", "--target", "jetson")
    assert (seen.code, seen.out) == (0, f"{model.stem}-bn-jetson.ttac\n")
    assert seen.err.endswith(f"next: ttac run {model.stem}-bn-jetson.ttac SAMPLES.npz\n")
    assert "the bundle runs on the CPU of: Jetson Xavier NX" in seen.err


def test_demo_files_name_the_next_command(run: Run) -> None:
    seen = run("demo", "--files", "try")
    assert seen.err == "next: ttac compile try/model.onnx --calibration try/calibration.npz\n"


@pytest.mark.parametrize("command", [["methods", "tent", "--json"], ["targets"], ["--help"]])
def test_a_closed_pipe_is_no_error(command: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ttac", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    message = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), message) == (0, b"")


def test_json_has_null_for_numbers_that_are_not_finite(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan, infinity = float("nan"), float("inf")
    assert finite({"a": [nan, 1.5], "b": (infinity, "x"), "c": True}) == {"a": [None, 1.5], "b": [None, "x"], "c": True}
    ema(tmp_path / "tiny.ttac")
    np.save("x.npy", np.ones((4, 3), np.float32))
    monkeypatch.setattr("ttac.samples.predictions.entropies", lambda outputs, head: np.full(len(outputs), nan))
    seen = run("run", "tiny.ttac", "x.npy", "--json")
    assert seen.code == 0 and "NaN" not in seen.out
    assert json.loads(seen.out)["samples"] == 4 and json.loads(seen.out)["mean_entropy"] is None


def test_bake_keeps_the_source_model_and_the_bundle(run: Run, tmp_path: Path) -> None:
    ema(tmp_path / "tiny.ttac")
    load(tmp_path / "tiny.ttac").save(tmp_path / "state.safetensors")
    (tmp_path / "source.onnx").write_bytes(b"source")
    manifest = read(tmp_path / "tiny.ttac")
    manifest["source"]["sha256"] = digest_of(tmp_path / "source.onnx")
    (tmp_path / "tiny.ttac/manifest.json").write_text(json.dumps(manifest))
    for output, message in (
        ("source.onnx", "the source model would be overwritten"),
        ("tiny.ttac/infer.onnx", "the output lies in the bundle"),
    ):
        seen = run("bake", "tiny.ttac", "--state", "state.safetensors", "-o", output)
        assert seen.code == 2 and seen.err.startswith(f"error: {message}\n  at `{output}`\n")
    assert (tmp_path / "source.onnx").read_bytes() == b"source"


def test_the_learning_rate_is_lr(run: Run) -> None:
    seen = run("compile", "x.onnx", "--set", "learning_rate=0.1")
    assert seen.code == 2 and "hint: did you mean `lr`?" in seen.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(run: Run, shell: str) -> None:
    seen = run("completion", shell)
    assert seen.code == 0 and "_TTAC_COMPLETE" in seen.out


def test_bash_completes_an_option_of_a_lazy_command(tmp_path: Path) -> None:
    words = {"_TTAC_COMPLETE": "bash_complete", "COMP_WORDS": "ttac eval --proto", "COMP_CWORD": "2"}
    command = [sys.executable, "-c", "import sys; from ttac.cli import main; sys.exit(main())"]
    done = subprocess.run(command, env={**os.environ, **words}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["plain,--protocol"]


@pytest.mark.usefixtures("unmeasured")
def test_the_room_at_work_is_named(run: Run, tmp_path: Path) -> None:
    seen = run("compile", str(saved(source(), tmp_path)), "--method", "tent", "--batch", "2")
    rooms = [room for room in map(room_after, seen.err.splitlines()) if room]
    assert rooms == [room for room in ROOMS[1:] if room in rooms] and {"norms", "plan", "verify"} <= set(rooms)
