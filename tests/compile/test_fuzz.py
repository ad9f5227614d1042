"""Mutated models end with a result or a refusal: never a traceback, a signal, a hang or a file opened outside."""

from __future__ import annotations

import shutil
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
    ("seed", "case"),
    [(0, 111), (0, 197), (0, 323), (0, 359), (1, 6), (1, 123), (1, 312), (1, 669), (12, 60), (21, 902), (41, 323)],
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


@pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler builds the library that watches")
def test_opens_of_libraries_are_watched(tmp_path: Path) -> None:
    """Files that C code opens, reads or makes outside the permitted folders end the case."""
    code = """
import ctypes, os, sys
from pathlib import Path
from benchmarks.fuzz.isolated_case import run_case, watched_process
folder = Path(sys.argv[1])
watched_process(folder / "watch.so")
libc = ctypes.CDLL(None)
inside = str(folder / "log").encode()
for path, flags in ((b"/etc/hostname", 0), (b"/etc/made", os.O_CREAT), (b"/proc/self/root/etc/passwd", 0), (inside, 0)):
    permitted = [str(folder), os.getcwd(), sys.base_prefix, sys.prefix, "/proc"]
    print(run_case(lambda: libc.open(path, flags, 0o600), seconds=1, permitted=permitted, log=folder / "log").status)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["99", "99", "99", "0"], done.stderr
