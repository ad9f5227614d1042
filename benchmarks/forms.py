"""`python -m benchmarks.forms NETWORK ...`: one step in each form and in PyTorch, as multiples of inference.

Every turn runs inference of the source, the portable graphs, the blocked graphs, those with kernels and the four
variants of PyTorch once, in one process.  A form that does not run here is left out.  The figures are medians of the
ratios of a turn, with their quartiles.  Bundles stay in `--folder` for the next call.

`--memory` prints the working memory of a step in place of its time: each figure is of a fresh process.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ttac
from benchmarks.exporting import export
from benchmarks.networks import NETWORKS
from benchmarks.peers import VARIANTS, variant_step
from ttac.errors import RuntimeMissingError
from ttac.evaluation.source_inference import inference
from ttac.reports.measure import measure, measured_by, random_samples

TURNS = 9
"""Timed turns."""
FORMS = ("portable", "blocked", "kernels")
MIB = 1 << 20
WARM_UP = 2
"""Untimed turns; `torch.compile` compiles in the first."""


def main() -> None:
    """Print one line of ratios for each network on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forms", description=__doc__)
    parser.add_argument("networks", nargs="+", choices=list(NETWORKS))
    parser.add_argument("--method", default="tent", help="PyTorch runs `tent` alone")
    parser.add_argument("--train", default="norms", help="as for `ttac compile`; PyTorch trains norms alone")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument(
        "--pytorch", default=",".join(VARIANTS), help="variants with commas between them; empty for none"
    )
    parser.add_argument("--folder", type=Path, default=Path("build/forms"))
    parser.add_argument("--memory", action="store_true", help="measure memory, in MiB, in place of time")
    options = parser.parse_args()
    comparable = (options.method, options.train) == ("tent", "norms")
    variants = [variant for variant in options.pytorch.split(",") if variant and comparable]
    print(*header(variants, "planned MiB" if options.memory else "inference ms"), sep="\n", flush=True)
    for name in options.networks:
        bundle = bundle_of(name, options.batch, options.folder, options.method, options.train)
        if options.memory:
            row = memory_line(name, bundle, options.batch, options.threads, variants)
        else:
            row = line(name, measured(name, bundle, options.batch, options.threads, options.turns, variants))
        print(row, flush=True)


def header(variants: Sequence[str] = VARIANTS, base: str = "inference ms") -> list[str]:
    """Return the first two lines of the table; `base` names the second column."""
    names = ["network", base, *FORMS, *variants]
    return ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]


def measured(
    name: str, bundle: Path, batch: int, threads: int, turns: int = TURNS, variants: Sequence[str] = VARIANTS
) -> dict[str, np.ndarray]:
    """Return the seconds of inference and of every step on random samples, turn by turn."""
    side = NETWORKS[name][1]
    if variants:
        import torch

        torch.compiler.reset()  # After eight sizes of a function, `torch.compile` runs it uncompiled.
    return timed(actions_of(name, bundle, threads, variants), random_samples(batch, (3, side, side)), turns)


def bundle_of(name: str, batch: int, folder: Path, method: str = "tent", train: str = "norms") -> Path:
    """Return the network's bundle of the method; it is compiled if the folder has none."""
    folder.mkdir(parents=True, exist_ok=True)
    bundle = folder / f"{name}-{method}{'' if train == 'norms' else f'-{train}'}-{batch}.ttac"
    if not bundle.exists():
        settings = {"guard": "off"}
        ttac.compile(export(name, folder), method=method, batch=batch, train=train, settings=settings, output=bundle)
    return bundle


def actions_of(
    name: str, bundle: Path, threads: int, variants: Sequence[str]
) -> dict[str, Callable[[np.ndarray], object]]:
    """Return the runs of each turn: inference of the source first, then every step."""
    actions: dict[str, Callable[[np.ndarray], object]] = {"inference": inference(bundle / "infer.onnx", threads)}
    for form in FORMS:
        with suppress(RuntimeMissingError):
            actions[form] = ttac.load(bundle, threads=threads, form=form).step
    settings = ttac.Bundle.read(bundle).manifest["method"]["settings"]
    return {**actions, **{variant: variant_step(variant, name, "tent", threads, settings) for variant in variants}}


def timed(actions: Mapping[str, Callable[[np.ndarray], object]], x: np.ndarray, turns: int) -> dict[str, np.ndarray]:
    """Return the seconds of each action, turn by turn; the first action of a turn moves on from turn to turn."""
    names = list(actions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-WARM_UP, turns):
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            start = time.perf_counter()
            actions[name](x)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(found) for name, found in seconds.items()}


def line(network: str, seconds: Mapping[str, np.ndarray]) -> str:
    """Return one row of Markdown: medians of the ratios to inference, with their quartiles."""
    base = seconds["inference"]
    cells = [network, f"{1e3 * float(np.median(base)):.1f}"]
    for name in [*FORMS, *(name for name in seconds if name not in ("inference", *FORMS))]:
        if (found := seconds.get(name)) is None:
            cells.append("")
        else:
            low, middle, high = np.quantile(found / base, [0.25, 0.5, 0.75])
            cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
    return "| " + " | ".join(cells) + " |"


def memory_line(network: str, bundle: Path, batch: int, threads: int, variants: Sequence[str]) -> str:
    """Return one row of Markdown: the planned peak, and the measured peak of each form and variant, in MiB."""
    planned = ttac.Bundle.read(bundle).manifest["memory"]["planned"]["peak"]
    peaks = peaks_of(network, bundle, batch, threads, variants)
    cells = [f"{peaks[name] / MIB:.0f}" if name in peaks else "-" for name in (*FORMS, *variants)]
    return "| " + " | ".join([network, f"{planned / MIB:.0f}", *cells]) + " |"


def peaks_of(network: str, bundle: Path, batch: int, threads: int, variants: Sequence[str]) -> dict[str, int]:
    """Return the measured peak in bytes of each form that runs here, and of each variant of PyTorch that does."""
    measurements: dict[str, Callable[[], dict[str, Any] | None]] = {
        **{form: partial(measure, bundle, threads=threads, form=form) for form in FORMS},
        **{
            variant: partial(measured_by, "benchmarks.memory", [network, str(batch), "tent", str(threads), variant])
            for variant in variants
        },
    }
    found = {name: measured_or_said(name, measurement) for name, measurement in measurements.items()}
    return {name: figures["peak"] for name, figures in found.items() if figures}


def measured_or_said(name: str, measurement: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return the figures of the measurement; where it does not run, say so and return None."""
    try:
        return measurement()
    except RuntimeMissingError as error:
        print(f"{name}: {error.problem}", file=sys.stderr, flush=True)
        return None


if __name__ == "__main__":
    main()
