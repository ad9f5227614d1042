"""Inference of the source model, the yardstick of every step.

`python -m ttac.evaluation.source_inference` measures its memory in a fresh process, as `ttac.reports.measure` does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ttac.reports.measure import kilobytes, measured_by, random_samples, step_memory
from ttac.runtime.bundle import graph_at
from ttac.runtime.engine import open_session, warm_engine


def inference(path: Path, threads: int) -> Callable[[np.ndarray], object]:
    """Return a function that runs the model on samples; raises RuntimeMissingError where the engine cannot load it."""
    session = open_session(graph_at(path), threads)
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def measure_inference(path: Path, batch: int, shape: tuple[int, ...], threads: int) -> dict[str, Any] | None:
    """Return `peak` and `loaded` of the file's inference in bytes; None where the system has no such counters.

    Raises RuntimeMissingError when the process fails.
    """
    arguments = [str(path), str(batch), "x".join(map(str, shape)), str(threads)]
    return measured_by("ttac.evaluation.source_inference", arguments)


def main() -> None:
    """Print the figures of the file on the command line as JSON."""
    path, batch, shape, threads = sys.argv[1:]
    warm_engine()
    bare = kilobytes("VmRSS")
    samples = random_samples(int(batch), [int(size) for size in shape.split("x")])
    print(json.dumps(step_memory(inference(Path(path), int(threads)), samples, bare, few=samples[:1])))


if __name__ == "__main__":
    main()
