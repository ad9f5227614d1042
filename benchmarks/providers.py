"""`python -m benchmarks.providers cuda,cpu`: bundles on other execution providers, beside the same bundles on the CPU.

Prints, for each method, the largest difference of the logits over five steps, relative to the largest logit, and the
median milliseconds of a step on both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import ttac
from ttac import demo
from ttac.demo import show
from ttac.errors import TtacError
from ttac.runtime.engine_import import engine
from ttac.runtime.providers import parse_providers

METHODS = ("source", "bn", "leantta", "tent", "sar", "surgeon")
STEPS, BATCH = 5, 16
REASON = 120
"""Most characters of the reason of a refusal."""


def main() -> None:
    """Print one row for each method."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.providers", description=__doc__)
    parser.add_argument("providers", help="as for `ttac run --providers`")
    providers = parse_providers(parser.parse_args().providers)
    print(f"onnxruntime {engine().__version__}, {', '.join(providers)}")
    print("| method | logits | ms on the CPU | ms |", "|---|---:|---:|---:|", sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            bundle = compiled(method, Path(folder))
            expected, on_cpu = stream(bundle, ("cpu",))
            try:
                logits, seconds = stream(bundle, providers)
            except TtacError as error:
                print(f"| {method} | {error.problem[:REASON]} | {on_cpu * 1e3:.1f} | - |", flush=True)
                continue
            apart = np.abs(logits - expected).max() / np.abs(expected).max()
            print(f"| {method} | {apart:.1e} | {on_cpu * 1e3:.1f} | {seconds * 1e3:.1f} |", flush=True)


def compiled(method: str, folder: Path) -> Path:
    """Compile the demo network with BatchNorm for `method`."""
    bundle = folder / f"{method}.ttac"
    model, calibration = demo.file(show.MODEL), demo.file(show.CALIBRATION)
    ttac.compile(model, method=method, calibration=calibration, batch=BATCH, output=bundle)
    return bundle


def stream(bundle: Path, providers: Sequence[str]) -> tuple[np.ndarray, float]:
    """Return the logits of five steps on snow, and the median seconds of a step."""
    adapter = ttac.load(bundle, form="portable", providers=providers)
    with np.load(demo.file(show.STREAM)) as arrays:
        x = arrays["snow"][: STEPS * BATCH].astype(np.float32) / 255
    logits, seconds = [], []
    for batch in x.reshape(STEPS, BATCH, *x.shape[1:]):
        start = time.perf_counter()
        logits.append(adapter.step(batch))
        seconds.append(time.perf_counter() - start)
    return np.concatenate(logits), statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
