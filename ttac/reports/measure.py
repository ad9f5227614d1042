"""Measure the memory of a bundle in a process of its own ; runs there as `python -m ttac.reports.measure`.

peak: VmHWM over ten steps at the planned batch minus VmRSS before them, the high-water mark reset in between;
loaded: that VmRSS minus the VmRSS of the bare interpreter with the engine imported.  Linux only.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ttac.child_process import run_module
from ttac.errors import RuntimeMissingError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(
    bundle: Path, steps: int = 10, threads: int | None = None, samples: Path | None = None
) -> dict[str, Any] | None:
    """Bytes `peak` and `loaded` of the bundle in folder `bundle`, and the median `seconds` of a step.

    `samples` is an `.npy` of at least a batch as the model takes them; without, they are random numbers, of which a
    method that learns from certain samples only may learn nothing, and then needs less.

    None where the system does not offer the counters (anything but Linux).  Raises RuntimeMissingError when the
    process fails.
    """
    if not CLEAR.exists():
        return None
    arguments = [str(bundle), str(steps), str(threads or 0), str(samples or "")]
    done = run_module("ttac.reports.measure", arguments)
    if done.returncode:
        raise RuntimeMissingError(
            "the bundle failed while its memory was measured",
            where=_reason(done.stderr) or f"exit code {done.returncode}",
            hint="run `ttac doctor`",
        )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _reason(stderr: str) -> str:
    """The message of the error that ended the process: the last traceback's, without its frames."""
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if not line.startswith(" ") and "Error" in line.split(":")[0]]
    return "\n     ".join(lines[starts[-1] :] if starts else lines[-1:])


def kilobytes(field: str) -> int:
    """A counter of this process, such as `VmRSS` or `VmHWM`, in KiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def main() -> None:
    """Print the measurement of the bundle named on the command line as JSON."""
    folder, steps, threads, samples = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    from ttac import runtime

    runtime.warm_engine()
    bare = kilobytes("VmRSS")
    adapter = runtime.load(folder, threads=threads or None)
    shape = [int(size) for size in adapter.input_shape]
    images = np.random.default_rng(0).standard_normal((adapter.batch, *shape), dtype=np.float32)
    if samples:
        images = np.load(samples, allow_pickle=False)[: adapter.batch]
    smallest = images[: adapter.smallest_batch]
    for _ in range(2):
        adapter.step(smallest)
    adapter.reset()
    gc.collect()
    CLEAR.write_text("5")
    before = kilobytes("VmRSS")
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        adapter.step(images)
        seconds.append(time.perf_counter() - start)
    peak = kilobytes("VmHWM") - before
    report = {"peak": peak * 1024, "loaded": (before - bare) * 1024, "seconds": float(np.median(seconds))}
    print(json.dumps({**report, "steps": steps, "batch": adapter.batch}))


if __name__ == "__main__":
    main()
