"""Run a module of ttac in a child process that trusts neither the working directory nor the environment.

Python puts the working directory in front of `sys.path`, so a stray `json.py` there would be executed.  The child
starts isolated (`python -I`) and takes the parent's `sys.path` with the working directory last.  On Linux the child
dies with its parent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

START = """
import json, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 9)
sys.path[:] = json.loads(sys.argv.pop(1))
"""
"""Prologue of every child: die with the parent (PR_SET_PDEATHSIG, SIGKILL), and take the parent's search path."""
MODULE = """
import runpy
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


Finished: TypeAlias = subprocess.CompletedProcess[str]


def run_module(module: str, arguments: Sequence[str] = (), *, seconds: float | None = None) -> Finished:
    """Run `python -m module *arguments` isolated, and return the finished process with its output as text.

    Raises subprocess.TimeoutExpired after `seconds`, OSError where no process can be started.
    """
    return run_code(MODULE, [module, *arguments], seconds=seconds)


def run_code(code: str, arguments: Sequence[str] = (), *, seconds: float | None = None) -> Finished:
    """Run the Python statements `code` isolated; see `run_module`."""
    command = [sys.executable, "-I", "-c", START + code, json.dumps(search_path()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


def start_module(module: str, arguments: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start `python -m module *arguments` isolated; it reads lines from the parent, and the parent reads its lines."""
    code = [sys.executable, "-I", "-c", START + MODULE, json.dumps(search_path()), module, *arguments]
    return subprocess.Popen(
        code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
    )


def search_path() -> list[str]:
    """The parent's `sys.path`, each entry once, with the working directory at the end."""
    here = Path.cwd()
    entries = dict.fromkeys(path or str(here) for path in sys.path)
    last = [path for path in entries if os.path.realpath(path) == os.path.realpath(here)]
    return [path for path in entries if path not in last] + last
