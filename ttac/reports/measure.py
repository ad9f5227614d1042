"""Memory of a step, measured in a fresh process: `python -m ttac.reports.measure BUNDLE STEPS THREADS FILE FORM`.

`peak` is VmHWM over ten steps at the planned batch minus VmRSS before the steps; the high-water mark is reset before.
`loaded` is VmRSS before the steps minus VmRSS of the bare interpreter with the engine imported.  Linux only.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttac.child_process import run_module
from ttac.errors import RuntimeMissingError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
STEPS, WARM_UP = 10, 2
"""Number of measured steps, and of steps before them."""


def measure(
    bundle: Path,
    steps: int = STEPS,
    threads: int | None = None,
    samples: Path | None = None,
    form: str = "auto",
) -> dict[str, Any] | None:
    """Return `peak` and `loaded` of a bundle in bytes, and the median `seconds` of a step; None without counters.

    Args:
        samples: an `.npy` with at least one batch of the model's input; None for random numbers.  A method that learns
            from certain samples only may learn nothing from random numbers, and then needs less memory.
        form: of the graphs, as in `ttac.load`.

    Only Linux has the counters.  Raises RuntimeMissingError when the process fails.
    """
    return measured_by("ttac.reports.measure", [str(bundle), str(steps), str(threads or 0), str(samples or ""), form])


def measured_by(module: str, arguments: Sequence[str] = ()) -> dict[str, Any] | None:
    """Return the figures that `python -m module` prints about its own memory; None where no counters exist.

    Raises RuntimeMissingError when the process fails.
    """
    if not CLEAR.exists():
        return None
    done = run_module(module, arguments)
    if done.returncode:
        where = _reason(done.stderr) or f"exit code {done.returncode}"
        raise RuntimeMissingError("a process that measures memory failed", where=where, hint="run `ttac doctor`")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _reason(stderr: str) -> str:
    """Return the message of the error that ended the process: the last traceback without its frames."""
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    starts = [i for i, line in enumerate(lines) if not line.startswith(" ") and "Error" in line.split(":")[0]]
    return "\n     ".join(lines[starts[-1] :] if starts else lines[-1:])


def kilobytes(field: str) -> int:
    """Return a counter of this process in KiB, such as `VmRSS` or `VmHWM`."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def step_memory(
    step: Callable[[np.ndarray], object],
    samples: np.ndarray,
    bare: int,
    *,
    smallest: int = 1,
    steps: int = STEPS,
    reset: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Return `peak` and `loaded` of this process in bytes, and the median `seconds` of a step on `samples`.

    Args:
        bare: VmRSS in KiB of the interpreter with the engine imported, before a model was loaded.
        smallest: number of samples of a warm-up step.
        reset: called after the warm-up.
    """
    for _ in range(WARM_UP):
        step(samples[:smallest])
    reset()
    gc.collect()
    CLEAR.write_text("5")
    before = kilobytes("VmRSS")
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step(samples)
        seconds.append(time.perf_counter() - start)
    peak = kilobytes("VmHWM") - before
    return {"peak": peak * 1024, "loaded": (before - bare) * 1024, "seconds": float(np.median(seconds))}


def random_samples(batch: int, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
    """Return random numbers [batch, *shape]: the time of a step does not depend on their content.

    Floats are standard normal.  Integers are 0 or 1, which every table of a model has.
    """
    random = np.random.default_rng(0)
    if np.dtype(dtype).kind != "f":
        return random.integers(0, 2, (batch, *shape)).astype(dtype)
    return random.standard_normal((batch, *shape), dtype=np.float32)


def main() -> None:
    """Print the figures of the bundle on the command line as JSON."""
    folder, steps, threads, file = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    from ttac import runtime

    runtime.warm_engine()
    bare = kilobytes("VmRSS")
    adapter = runtime.load(folder, threads=threads or None, form=sys.argv[5])
    samples = random_samples(adapter.batch, [int(size) for size in adapter.input_shape], adapter.inputs[0].dtype)
    if file:
        samples = np.load(file, allow_pickle=False)[: adapter.batch]
    smallest, reset = adapter.smallest_batch, adapter.reset
    report = step_memory(adapter.step, samples, bare, smallest=smallest, steps=steps, reset=reset)
    print(json.dumps({**report, "steps": steps, "batch": adapter.batch}))


if __name__ == "__main__":
    main()
