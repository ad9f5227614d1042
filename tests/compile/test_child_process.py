"""Child processes execute nothing from the working directory and die with their parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ttac.child_process import run_code, run_module, search_path


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which modules named like those of the library leave a trace when they are executed."""
    for name in ("json", "onnxruntime", "onnx", "numpy", "runpy"):
        (tmp_path / f"{name}.py").write_text(f"open('executed-{name}', 'w')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_of_the_working_directory_runs(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", str(trap), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(trap))
    done = run_code("import json, onnxruntime, onnx, numpy, runpy; print(numpy.__name__)")
    assert done.stdout.strip() == "numpy", done.stderr
    assert not list(trap.glob("executed-*"))


def test_the_working_directory_comes_last(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/somewhere"])
    assert search_path() == ["/somewhere", str(Path.cwd())]


def test_a_module_gets_its_arguments() -> None:
    done = run_module("platform", ["--terse"])
    assert done.returncode == 0 and done.stdout.strip()


def test_a_module_that_is_missing_fails() -> None:
    done = run_module("no_such_module")
    assert done.returncode == 1 and "no_such_module" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the signal at the parent's death is Linux's")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    inner = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    outer = f"from ttac.child_process import run_code; run_code({inner!r})"
    parent = subprocess.Popen([sys.executable, "-c", outer])
    deadline = time.monotonic() + 20
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    child = int(pid.read_text())
    while time.monotonic() < deadline and running(child):
        time.sleep(0.05)
    assert not running(child)


def running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False
