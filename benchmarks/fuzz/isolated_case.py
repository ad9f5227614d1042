"""Run one case in a forked child with limits of time and memory, and classify its end.

The parent imports everything once; a child costs a few milliseconds.  Linux only.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ttac.reports.measure
from ttac.errors import TtacError

INTERNAL, HANG, OUTSIDE = 1, 124, 99
"""Ends of a child: a traceback, a time-out, and a file opened outside the permitted folders."""
WATCH = "watch_files"
"""Function of `watch_files.c` that begins the watch."""
PATIENCE = 300
"""Seconds that a case may last in which it takes no processor time: other work may pause it."""


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of one case.

    Attributes:
        status: exit status, or minus the signal.
        seconds: of processor time.
        peak: resident bytes.
        text: the last lines that it wrote.
    """

    status: int
    seconds: float
    peak: int
    text: str

    @property
    def is_bad(self) -> bool:
        """Whether a user would see a traceback, a crash, a hang or a leak."""
        return self.status < 0 or self.status in (INTERNAL, HANG, OUTSIDE)


def run_case(
    case: Callable[[], None], *, seconds: float, permitted: Sequence[str], log: Path, patience: float = PATIENCE
) -> End:
    """Run `case` in a forked child and return its end; the output of the child goes to `log`.

    A case hangs if it takes more than `seconds` of processor time, or lasts longer than `patience`.
    """
    start = time.monotonic()
    child = os.fork()
    if not child:
        _in_child(case, permitted, log, math.ceil(seconds))
    status, usage = _wait(child, start + patience)
    used = usage.ru_utime + usage.ru_stime
    status = HANG if used > seconds or status == -signal.SIGXCPU else status
    text = log.read_text(encoding="utf-8", errors="replace")[-2000:] if log.exists() else ""
    return End(status=status, seconds=used, peak=usage.ru_maxrss * 1024, text=text)


def _in_child(case: Callable[[], None], permitted: Sequence[str], log: Path, limit: int) -> None:
    """Run the case and end the process; never returns."""
    status = INTERNAL
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        _watch_files(permitted)
        case()
        status = 0
    except TtacError as error:
        status = error.exit_code
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else INTERNAL
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def measure_nothing() -> None:
    """Replace the measurement of memory, which starts a process of its own and takes most of a small compile."""
    real = ttac.reports.measure.measure
    for module in list(sys.modules.values()):
        if getattr(module, "measure", None) is real:
            module.measure = lambda *_, **__: None  # type: ignore[attr-defined]


def watched_process(library: Path) -> bool:
    """Whether this process sees the opens of all its libraries; starts the program again if `library` can be built.

    Python's audit hook sees the opens of Python only.  A C compiler builds `library` from `watch_files.c`.
    """
    if hasattr(ctypes.CDLL(None), WATCH):
        return True
    compiler = shutil.which("cc")
    if compiler is None:
        return False
    library.parent.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).with_name("watch_files.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    os.execve(sys.executable, sys.orig_argv, {**os.environ, "LD_PRELOAD": str(library)})


def _watch_files(permitted: Sequence[str]) -> None:
    """End the process with `OUTSIDE` when it opens a file outside the permitted folders."""
    watch = getattr(ctypes.CDLL(None), WATCH, None)
    if watch is not None:
        watch(":".join(os.path.realpath(path) for path in permitted if path).encode())

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith(tuple(permitted)):
                os.write(2, f"opened {path}\n".encode())
                os._exit(OUTSIDE)

    sys.addaudithook(hook)


def _wait(child: int, deadline: float) -> tuple[int, resource.struct_rusage]:
    """Exit status, or minus the signal, and the resources of the child, which is killed at the deadline."""
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status), usage
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            _, _, usage = os.wait4(child, 0)
            return HANG, usage
        time.sleep(0.005)
