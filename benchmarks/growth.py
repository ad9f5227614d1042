"""Time and memory of a step as batch, image, width, depth and threads grow: `python -m benchmarks.growth [AXIS ...]`.

The net is a Wide ResNet-16-2 on images of 32x32 at batch 8 with two threads; each axis changes one of these.  Time is
the median ratio of a step of `tent` to inference of the source, both run in turn in one process.  Memory is the peak of
a fresh process by the protocol of `ttac.reports.measure`.  `--write` replaces the measured axes in `docs/growth.json`,
and makes `docs/growth.svg` and the tables of `docs/growth.md` from all axes there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ttac
from benchmarks.exporting import export
from benchmarks.forms import FORMS, actions_of, peaks_of, timed
from benchmarks.networks import GROWING
from ttac.reports.measure import random_samples

DOCS = Path(__file__).resolve().parent.parent / "docs"
PEER = "eager channels_last"
"""The variant of PyTorch beside our forms; the fastest one, `torch.compile`, would compile anew at every point."""
SERIES = (*FORMS, PEER)
MIB = 1 << 20
INTRO = """\
# Growth of time and memory

A Wide ResNet-16-2 on images of 32x32, batch 8, two threads; each table changes one of these
(`python -m benchmarks.growth --write`). Step: median ratio of a step of `tent` without the guard to inference of the
source, both run in turn in one process. Memory: the measured peak of a fresh process. PyTorch runs eagerly with
channels_last tensors.

On eight threads nothing was measured. The tasks of the native operators depend on shapes alone. At batch 8, each pass
of a norm has at least eight tasks on ResNet-18, -50 and ResNeXt-29, MobileNetV2 and WRN-28-10, and most have sixteen or
more. So eight threads have work in each of them; where there are nine to fifteen tasks, some threads take two and the
others wait. At batch 1, one to six norms of a network have fewer than eight tasks, down to one on WRN-28-10 and two on
MobileNetV2.

![Step time and peak against batch, side of the image, width, depth and threads](growth.svg)"""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured setting: its place on the axis, and the four sizes."""

    value: int
    network: str = "wrn16_2"
    batch: int = 8
    threads: int = 2


AXES: Mapping[str, tuple[Point, ...]] = {
    "batch": tuple(Point(value=batch, batch=batch) for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    "side": (
        Point(value=16, network="wrn16_2_16"),
        Point(value=32),
        Point(value=64, network="wrn16_2_64"),
        Point(value=128, network="wrn16_2_128"),
    ),
    "width": tuple(Point(value=width, network=f"wrn16_{width}") for width in (1, 2, 4, 8)),
    "depth": tuple(Point(value=depth, network=f"wrn{depth}_2") for depth in (10, 16, 28, 40)),
    "threads": tuple(Point(value=threads, threads=threads) for threads in (1, 2)),
}

Figures = dict[str, dict[str, Any]]
"""Axis -> place on the axis -> `inference` in ms, `step` ratios and `peak` bytes by form."""


def main() -> None:
    """Measure the axes on the command line, print their tables, and write the page with `--write`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("axes", nargs="*", help=f"of {', '.join(AXES)}; all without one")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.axes) - set(AXES):
        parser.error(f"no axis {', '.join(sorted(unknown))}; there are {', '.join(AXES)}")
    kept = DOCS / "growth.json"
    figures: Figures = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for axis in options.axes or AXES:
        figures[axis] = {str(point.value): measured(point, options.turns) for point in AXES[axis]}
        print(*table(axis, figures[axis]), sep="\n", flush=True)
        if options.write:
            kept.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if options.write:
        write_page(figures)


def measured(point: Point, turns: int) -> dict[str, Any]:
    """Return the milliseconds of inference, the step ratios and the peaks in bytes at one point."""
    side = GROWING[point.network][1]
    with tempfile.TemporaryDirectory(prefix="ttac-growth-") as folder:
        bundle = Path(folder) / "net.ttac"
        model = export(point.network, Path(folder))
        ttac.compile(model, method="tent", batch=point.batch, settings={"guard": "off"}, output=bundle)
        actions = actions_of(point.network, bundle, point.threads, [PEER])
        seconds = timed(actions, random_samples(point.batch, (3, side, side)), turns)
        peaks = peaks_of(point.network, bundle, point.batch, point.threads, [PEER])
    base = seconds.pop("inference")
    ratios = {name: round(float(np.median(found / base)), 3) for name, found in seconds.items()}
    return {"inference": round(1e3 * float(np.median(base)), 2), "step": ratios, "peak": peaks}


def table(axis: str, points: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the Markdown table of one axis."""
    head = [axis, "inference ms", *(f"{name} step" for name in SERIES), *(f"{name} MiB" for name in SERIES)]
    lines = ["| " + " | ".join(head) + " |", "| ---: " * len(head) + "|"]
    for value, found in points.items():
        steps = [f"{found['step'][name]:.2f}" if name in found["step"] else "-" for name in SERIES]
        peaks = [f"{found['peak'][name] / MIB:.1f}" if name in found["peak"] else "-" for name in SERIES]
        lines.append("| " + " | ".join([value, f"{found['inference']:.1f}", *steps, *peaks]) + " |")
    return lines


def write_page(figures: Figures) -> None:
    """Draw the picture, and write the page with the tables of all measured axes."""
    draw(figures, DOCS / "growth.svg")
    tables = ["\n".join(table(axis, figures[axis])) for axis in AXES if axis in figures]
    (DOCS / "growth.md").write_text("\n\n".join([INTRO, *tables]) + "\n", encoding="utf-8")


def draw(figures: Figures, path: Path) -> None:
    """Write two rows of plots, one column per axis: step time over inference, and measured peak."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "ttac"  # the same figures give the same file
    from matplotlib import pyplot

    axes = [axis for axis in AXES if axis in figures]
    figure, plots = pyplot.subplots(2, len(axes), figsize=(3 * len(axes), 6), squeeze=False)
    for column, axis in enumerate(axes):
        values = [int(value) for value in figures[axis]]
        for name in SERIES:
            found = list(figures[axis].values())
            plots[0][column].plot(values, [each["step"].get(name, np.nan) for each in found], "o-", label=name)
            plots[1][column].plot(values, [each["peak"].get(name, np.nan) / MIB for each in found], "o-")
        for plot in plots[:, column]:
            plot.set_xscale("log", base=2)
            plot.set_xticks(values, [str(value) for value in values])
            plot.set_ylim(bottom=0)
            plot.tick_params(labelsize=7)
            plot.grid(alpha=0.3)
        plots[1][column].set_xlabel(axis)
    plots[0][0].set_ylabel("step / inference")
    plots[1][0].set_ylabel("measured peak, MiB")
    plots[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
