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
from ttac.runtime.adapter import Adapter
from ttac.runtime.manifest import parse_manifest
from ttac.runtime.records import BATCH_AXIS
from ttac.runtime.tensors import return_freed_memory

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
        samples: an `.npz` with one batch of each input, by its name; None for random numbers.  A method that learns
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
    step: Callable[[Any], object],
    samples: Any,
    bare: int,
    *,
    few: Any = None,
    steps: int = STEPS,
    reset: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Return `peak` and `loaded` of this process in bytes, and the median `seconds` of a step on `samples`.

    Args:
        samples: the argument of a step.
        bare: VmRSS in KiB of the interpreter with the engine imported, before a model was loaded.
        few: the argument of a warm-up step, with fewer samples; None for `samples`.
        reset: called after the warm-up.
    """
    for _ in range(WARM_UP):
        step(samples if few is None else few)
    reset()
    gc.collect()
    return_freed_memory()  # else the steps would run in memory that the warm-up and the reset have freed
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
    return random_array((batch, *shape), dtype)


def random_array(shape: Sequence[int], dtype: str) -> np.ndarray:
    """Return such random numbers of `shape`."""
    random = np.random.default_rng(0)
    if np.dtype(dtype).kind != "f":
        return random.integers(0, 2, shape).astype(dtype)
    return random.standard_normal(shape, dtype=np.float32)


def random_feeds(adapter: Adapter, count: int) -> dict[str, np.ndarray]:
    """Return random numbers for `count` samples of the largest size by the names of the inputs."""
    manifest, feeds = parse_manifest(adapter.bundle.manifest), {}
    for spec in manifest.inputs:
        shape = [count if size == BATCH_AXIS else int(size) for size in manifest.largest(spec)]
        feeds[spec.name] = random_array(shape, spec.dtype)
    return feeds


def main() -> None:
    """Print the figures of the bundle on the command line as JSON."""
    folder, steps, threads, file = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    from ttac import runtime

    runtime.warm_engine()
    bare = kilobytes("VmRSS")
    # The counters of the system are those of the host, so the CPU runs, whatever the target names.  A comparison would
    # load the portable graphs too, and the form would then run in the memory that they leave.
    adapter = runtime.load(folder, threads=threads or None, form=sys.argv[5], providers=("cpu",), compare=False)
    samples, few = (random_feeds(adapter, count) for count in (adapter.batch, adapter.smallest_batch))
    if file:
        with np.load(file, allow_pickle=False) as arrays:
            samples = {name: arrays[name] for name in arrays.files}
        axes = {spec.name: spec.batch_axis for spec in adapter.inputs}
        few = {
            name: array if (axis := axes[name]) is None else array.take(range(adapter.smallest_batch), axis)
            for name, array in samples.items()
        }
    report = step_memory(adapter.step, samples, bare, few=few, steps=steps, reset=adapter.reset)
    print(json.dumps({**report, "steps": steps, "batch": adapter.batch}))


if __name__ == "__main__":
    main()
