"""Mutated models end with a result or a refusal: never a traceback, a signal, a hang or a file opened outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cases run in forked children with Linux's limits")


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("seed", "case"), [(0, 111), (0, 197), (0, 323), (0, 359), (1, 6), (1, 123), (1, 312), (1, 669), (12, 60)]
)
def test_cases_that_once_ended_badly(seed: int, case: int) -> None:
    done = fuzz("--seed", str(seed), "--only", str(case))
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_first_sixty_cases_end_well() -> None:
    done = fuzz("--seed", "2", "--cases", "60")
    assert done.returncode == 0, done.stdout
    assert '"cases": 60' in done.stdout


def test_a_bad_end_is_seen(tmp_path: Path) -> None:
    """The harness itself: a traceback, a hang, a signal and a file outside are distinguished."""
    code = """
import os, sys, time
from pathlib import Path
from benchmarks.fuzz.isolated_case import run_case
from ttac.errors import UnsupportedError

def refuse(): raise UnsupportedError("no")
def crash(): os.kill(os.getpid(), 11)
def spin():
    while True: pass
def read(): open("/etc/hostname")
folder = Path(sys.argv[1])
for case in (lambda: None, refuse, lambda: 1 / 0, lambda: time.sleep(9), spin, crash, read):
    end = run_case(case, seconds=1, permitted=[str(folder), os.getcwd(), sys.base_prefix, sys.prefix], log=folder / "log", patience=4)
    print(end.status, end.is_bad, flush=True)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.split("\n")[:-1]
    assert lines == ["0 False", "3 False", "1 True", "124 True", "124 True", "-11 True", "99 True"], done.stderr
