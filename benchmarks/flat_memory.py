"""Memory of a process over many steps: `python -m benchmarks.flat_memory --steps 20000`.

Each method runs on the small net in batches of 16 with the form that `ttac.load` chooses, in this process.  A row has
the resident memory in MiB after a twentieth of the steps and after each further quarter.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import ttac
from benchmarks.long_streams import NET
from ttac.evaluation.machine import about
from ttac.reports.measure import kilobytes

DEMO = Path(ttac.__file__).resolve().parent / "demo"
BATCH = 16
CASES: Mapping[str, Mapping[str, Any]] = {
    "tent": {},
    "surgeon": {},
    "surgeon --train all": {"train": "all"},
    "bn --quantize int8": {"quantize": "int8"},
}
"""Row -> options of its compile."""


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flat_memory", description=__doc__)
    parser.add_argument("--steps", type=int, default=20000)
    steps = parser.parse_args().steps
    marks = [steps // 20, *(steps * part // 4 for part in range(1, 5))]
    print(f"{about(1)['machine']}; resident memory in MiB after that many steps")
    print("| method | form | " + " | ".join(f"{mark:,}" for mark in marks) + " |")
    print("|---|---|" + "---:|" * len(marks))
    with np.load(DEMO / "fashion_stream.npz") as file:
        x = np.concatenate([file[name][:256] for name in ("clean", "contrast")]).astype(np.float32) / 255
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        for name, options in CASES.items():
            bundle = ttac.compile(
                NET,
                method=name.split()[0],
                batch=BATCH,
                calibration=DEMO / "fashion_calibration.npz",
                output=Path(folder) / f"{name.replace(' ', '')}.ttac",
                **options,
            )
            adapter = ttac.load(bundle.path, threads=1)
            found = resident_after(adapter, x, marks)
            cells = " | ".join(f"{value:.1f}" for value in found)
            print(f"| `{name}` | {adapter.stats.get('form')} | {cells} |", flush=True)


def resident_after(adapter: ttac.Adapter, x: np.ndarray, marks: list[int]) -> list[float]:
    """Run steps on batches of `x`, and return the resident MiB after each number of steps in `marks`."""
    random, found = np.random.default_rng(0), []
    for step in range(1, marks[-1] + 1):
        adapter.step(x[random.integers(0, len(x), BATCH)])
        if step in marks:
            found.append(kilobytes("VmRSS") / 1024)
    return found


if __name__ == "__main__":
    main()
