"""Errors of single samples with a window: `python -m benchmarks.windows --methods tent bn`.

The net is the demo's with batch norms.  Each method adapts to 512 images of a kind, one at a time, after a reset.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import ttac
from benchmarks.drift import DEMO, data
from benchmarks.long_streams import NET, source_errors

KINDS = ("clean", "gaussian_noise", "snow")
COUNT = 512
FOLDER = tempfile.TemporaryDirectory()
"""Folder of the bundles."""


def main() -> None:
    """Print a table of errors in %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["tent", "bn", "eata", "sar", "surgeon"])
    parser.add_argument("--windows", nargs="+", type=int, default=[0, 16])
    asked = parser.parse_args()
    images, labels = data()
    kept = {kind: images[kind][:COUNT] for kind in KINDS}
    print(f"| method | window | {' | '.join(KINDS)} |\n|---|---:|---:|---:|---:|")
    print("| source | |", " | ".join(f"{error:.1f}" for error in source_errors(kept, labels[:COUNT]).values()), "|")
    for method in asked.methods:
        for window in asked.windows:
            adapter = compiled(method, window)
            errors = [100 * wrong(adapter, x, labels) for x in kept.values()]
            print(f"| {method} | {window} |", " | ".join(f"{error:.1f}" for error in errors), "|", flush=True)


def compiled(method: str, window: int) -> ttac.Adapter:
    """The method for single samples, with a window of this size; 0 for none."""
    bundle = Path(FOLDER.name) / f"{method}-{window}.ttac"
    ttac.compile(
        DEMO / f"{NET}.onnx",
        method=method,
        batch=1,
        calibration=DEMO / "fashion_calibration.npz",
        settings={"window": window},
        output=bundle,
    )
    return ttac.load(bundle, threads=1)


def wrong(adapter: ttac.Adapter, x: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of the images whose class a step misses, after a reset."""
    adapter.reset()
    logits = np.concatenate([adapter.step(x[i : i + 1]) for i in range(len(x))])
    return float(np.mean(logits.argmax(1) != labels[: len(x)]))


if __name__ == "__main__":
    main()
