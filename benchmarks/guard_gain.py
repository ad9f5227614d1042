"""The gain on the fifteen corruptions that the guard takes away: `python -m benchmarks.guard_gain --keep DIR`.

Every method runs with the guard and without it on the same batches of the shipped nets, at severity 5.  Lost is the
mean error with the guard minus that without it, in points.  DIR holds finished cells, so that an interrupted run goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

import ttac
from benchmarks.methods_table import DEMO, NETS, PROTOCOLS
from ttac.evaluation.watch import Watch

METHODS = ("tent", "eata", "sar", "surgeon", "dropit", "t3a", "neo", "roid", "shot-im")
OFF = ":guard=off"


def main() -> None:
    """Print a row for each net, batch, method and protocol."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard_gain", description=__doc__)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 16])
    parser.add_argument("--samples", type=int, default=256, help="images of each corruption")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("build/guard-gain"), help="folder of finished cells")
    asked = parser.parse_args()
    print("| net | batch | method | protocol | source | without the guard | with it | lost |")
    print("|---|---:|---|---|---:|---:|---:|---:|")
    for net in asked.nets:
        for batch in asked.batches:
            for row in rows(errors(asked, net, batch), asked.methods):
                print(f"| {NETS[net]} | {batch} | {row} |", flush=True)


def errors(asked: argparse.Namespace, net: str, batch: int) -> Mapping[tuple[str, str], float]:
    """Return the mean errors over the corruptions in per cent, by method and protocol."""
    found = ttac.evaluate(
        DEMO / f"{net}.onnx",
        DEMO / "fashion_stream.npz",
        methods=["source", *asked.methods, *(method + OFF for method in asked.methods)],
        corruptions=["all"],
        protocols=PROTOCOLS,
        batch=batch,
        samples=asked.samples,
        options={"calibration": DEMO / "fashion_calibration.npz"},
        output=asked.keep.absolute(),
        jobs=asked.jobs,
        threads=1,
        watch=Watch(say=lambda line: print(line, file=sys.stderr, flush=True)),
    )
    wrong: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in found.rows():
        if row["shift"] != "clean":
            wrong[row["method"], row["protocol"]].append(100 * row["error"])
    return {key: float(np.mean(values)) for key, values in wrong.items()}


def rows(found: Mapping[tuple[str, str], float], methods: Sequence[str]) -> Iterator[str]:
    """Yield the cells of each method that fits the net."""
    for method, protocol in product(methods, PROTOCOLS):
        on, off = found.get((method, protocol)), found.get((method + OFF, protocol))
        if on is not None and off is not None:
            source = found["source", protocol]
            yield f"`{method}` | {protocol} | {source:.1f} | {off:.1f} | {on:.1f} | {on - off:+.1f}"


if __name__ == "__main__":
    main()
