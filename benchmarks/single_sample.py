"""Time of `leantta` relative to inference of the source, one sample and one thread, for all norms and for 30 % of them.

`python -m benchmarks.single_sample [NETWORK ...]` prints a Markdown table of medians of paired ratios, with quartiles.
The times are those of the processor, which other work on the machine disturbs less than wall time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

import ttac
from benchmarks.exporting import export
from ttac.evaluation.source_inference import inference
from ttac.reports.measure import random_samples

NETWORKS = ("resnet18", "resnet18_32", "mobilenet_v2")
CHOICES = {
    "source": ("source", "norms"),
    "all norms": ("leantta", "norms"),
    "first 30 %": ("leantta", "first:30%"),
    "last 30 %": ("leantta", "last:30%"),
}
WARM_UP, TURNS = 3, 31


def loaded(model: Path, method: str, train: str) -> ttac.Adapter:
    """Return an adapter of the network, compiled for single samples."""
    with tempfile.TemporaryDirectory(prefix="ttac-bench-") as folder:
        bundle = ttac.compile(model, method=method, batch=1, train=train, output=Path(folder) / "bundle.ttac")
        assert bundle.path is not None
        return ttac.load(bundle.path, threads=1)


def in_turn(work: Mapping[str, Callable[[], object]]) -> dict[str, np.ndarray]:
    """Return the processor seconds of each piece of work; element i of every array is from the same turn."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(WARM_UP + TURNS):
        for name, action in work.items():
            start = time.process_time()
            action()
            if turn >= WARM_UP:
                seconds[name].append(time.process_time() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def row(network: str, folder: Path) -> list[str]:
    """Return the network's name, milliseconds of inference, and the ratio of each choice, `1.17 (1.15 to 1.20)`."""
    model = export(network, folder)
    adapters = {title: loaded(model, method, train) for title, (method, train) in CHOICES.items()}
    x, source = random_samples(1, adapters["source"].input_shape), inference(model, 1)
    work = {title: partial(adapter.step, x) for title, adapter in adapters.items()}
    times = in_turn({"inference": partial(source, x), **work})
    quartiles = [np.quantile(times[title] / times["inference"], (0.5, 0.25, 0.75)) for title in CHOICES]
    cells = [f"{median:.2f} ({low:.2f} to {high:.2f})" for median, low, high in quartiles]
    return [network, f"{1e3 * np.median(times['inference']):.1f}", *cells]


def main() -> None:
    print("| network | inference ms | " + " | ".join(CHOICES) + " |")
    print("|---|---:|" + "---:|" * len(CHOICES))
    with tempfile.TemporaryDirectory(prefix="ttac-bench-") as folder:
        for network in sys.argv[1:] or NETWORKS:
            print("| " + " | ".join(row(network, Path(folder))) + " |", flush=True)


if __name__ == "__main__":
    main()
