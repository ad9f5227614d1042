"""Plain inference of an ONNX file: what every step is compared with.

Its memory is measured by the protocol of `ttac.reports.measure`, in a process of its own:
`python -m ttac.evaluation.plain`.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttac.child_process import run_module
from ttac.errors import RuntimeMissingError
from ttac.reports.measure import CLEAR, kilobytes
from ttac.runtime.engine import plain_session, warm_engine

STEPS = 10


def inference(path: Path, threads: int) -> Callable[[np.ndarray], object]:
    """What runs the file on samples; raises RuntimeMissingError if the engine is missing or refuses it."""
    session = plain_session(path, threads)
    taken = session.get_inputs()[0].name
    return lambda x: session.run(None, {taken: x})


def samples(batch: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers [batch, *shape]: what is timed does not depend on what the samples show."""
    return np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)


def measure_inference(path: Path, batch: int, shape: tuple[int, ...], threads: int) -> dict[str, Any] | None:
    """Bytes `peak` and `loaded` of plain inference; None where the system does not offer the counters.

    Raises RuntimeMissingError when the process fails.
    """
    asked = [str(path), str(batch), "x".join(map(str, shape)), str(threads)]
    return measured_by("ttac.evaluation.plain", asked)


def measured_by(module: str, arguments: Sequence[str] = ()) -> dict[str, Any] | None:
    """Return the figures that `python -m module` prints about its own memory; None where no counters exist.

    Raises RuntimeMissingError when the process fails.
    """
    if not CLEAR.exists():
        return None
    done = run_module(module, arguments)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeMissingError("a process that measures memory failed", where=last, hint="run `ttac doctor`")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def peak_of(step: Callable[[np.ndarray], object], batch: int, shape: tuple[int, ...], bare: int) -> dict[str, int]:
    """Bytes `peak` and `loaded` of this process, `bare` KiB of which were there before the model (DESIGN section 5)."""
    x = samples(batch, shape)
    for _ in range(2):
        step(x[:1])
    gc.collect()
    CLEAR.write_text("5")
    before = kilobytes("VmRSS")
    for _ in range(STEPS):
        step(x)
    return {"peak": 1024 * (kilobytes("VmHWM") - before), "loaded": 1024 * (before - bare)}


def main() -> None:
    """Print the measurement of the file named on the command line as JSON."""
    path, batch, shape, threads = sys.argv[1:]
    warm_engine()
    bare = kilobytes("VmRSS")
    sizes = tuple(int(size) for size in shape.split("x"))
    print(json.dumps(peak_of(inference(Path(path), int(threads)), int(batch), sizes, bare)))


if __name__ == "__main__":
    main()
