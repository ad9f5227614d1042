"""Inference of the source model, the yardstick of every step.

`python -m ttac.evaluation.source_inference` measures its memory in a fresh process, as `ttac.reports.measure` does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ttac.reports.measure import kilobytes, measured_by, step_memory
from ttac.runtime.bundle import graph_at
from ttac.runtime.engine import open_session, warm_engine


def inference(path: Path, threads: int) -> Callable[[Any], object]:
    """Return a function that runs the file on samples: an array for one input, or arrays by the names of the inputs.

    Raises RuntimeMissingError where the engine cannot load the file.
    """
    session = open_session(graph_at(path), threads)
    names = [value.name for value in session.get_inputs()]

    def run(x: Any) -> object:
        return session.run(None, {name: x[name] for name in names} if isinstance(x, Mapping) else {names[0]: x})

    return run


def measure_inference(path: Path, samples: Path, threads: int) -> dict[str, Any] | None:
    """Return `peak` and `loaded` of the file's inference in bytes; None where the system has no such counters.

    `samples` is an `.npz` with an array for each input.  Raises RuntimeMissingError when the process fails.
    """
    return measured_by("ttac.evaluation.source_inference", [str(path), str(samples), str(threads)])


def main() -> None:
    """Print the figures of the file on the command line as JSON."""
    path, samples, threads = sys.argv[1:]
    warm_engine()
    bare = kilobytes("VmRSS")
    with np.load(samples, allow_pickle=False) as arrays:
        feeds = {name: arrays[name] for name in arrays.files}
    print(json.dumps(step_memory(inference(Path(path), int(threads)), feeds, bare)))


if __name__ == "__main__":
    main()
