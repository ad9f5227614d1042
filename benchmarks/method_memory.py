"""Memory of a step by method: `python -m benchmarks.method_memory resnext29 --batches 8 64`.

Every figure is measured by the compile, in a fresh process: the growth of the peak over steps, beyond the loaded model.
The residuals are planned: bytes that the forward keeps for the gradients, which papers call the cache.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import ttac
from benchmarks.exporting import export
from benchmarks.networks import NETWORKS
from ttac.errors import TtacError
from ttac.sizes import format_size

METHODS = ("source", "bn", "tent", "cotta", "mecta", "surgeon", "surgeon all")
"""Methods of the papers' comparisons; ` all` trains all weights."""


def main() -> None:
    """Print one table row for each network, batch and method."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.method_memory", description=__doc__)
    parser.add_argument("networks", nargs="+", choices=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[8])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    asked = parser.parse_args()
    print("| network | batch | method | peak of a step | loaded | residuals |")
    print("|---|---:|---|---:|---:|---:|")
    with TemporaryDirectory() as folder:
        for network in asked.networks:
            path = export(network, Path(folder))
            for batch in asked.batches:
                for method in asked.methods:
                    print(f"| {network} | {batch} | {row(path, method, batch)} |", flush=True)


def row(path: Path, label: str, batch: int) -> str:
    """Return the cells of one method: its name and three sizes, or the reason why it does not fit."""
    method, _, train = label.partition(" ")
    name = f"`{method}`, everything trained" if train else f"`{method}`"
    output = path.with_name("measured.ttac")
    try:
        bundle = ttac.compile(path, method=method, batch=batch, train=train or "norms", output=output)
    except TtacError as error:
        return f"{name} | {error.problem} | | "
    report = bundle.report
    sizes = [report["measured"]["peak"], report["measured"]["loaded"], report["planned"]["residuals"]]
    return " | ".join([name, *("-" if size is None else format_size(int(size)) for size in sizes)])


if __name__ == "__main__":
    main()
