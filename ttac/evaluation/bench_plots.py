"""The plots of the report of `ttac bench`: time and memory of each bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ttac.evaluation.plots import ACCENT, BEST, INK, MUTED, PALE, WIDTH, drawn, open_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def costs(
    names: Sequence[str],
    ratios: Sequence[tuple[float, float, float]],
    peers: Sequence[float | None],
    width: float = WIDTH,
) -> str:
    """Return one row per bundle: its ratio to inference of the source, between quartiles; a ring for the peer."""
    with open_figure(1, 1, 0.5 + 0.24 * len(names), width=width) as (figure, (axes,)):
        places = np.arange(len(names))
        middle, low, high = (np.array(values) for values in zip(*ratios, strict=True))
        axes.hlines(places, low, high, color=ACCENT, linewidth=5)
        axes.scatter(middle, places, color=BEST, s=34, zorder=3, linewidths=0)
        _rings(axes, peers)
        for place, value in zip(places, middle, strict=True):
            axes.annotate(f"{value:.2f}", (value, place), (0, 6), textcoords="offset points", fontsize=7.5, ha="center")
        axes.axvline(1, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
        _rows_down(axes, names)
        axes.set_xlabel("times the time of inference")
        return drawn(figure, f"costs {names} {width}")


def memory(names: Sequence[str], peaks: Sequence[tuple[float, float, float | None]], width: float = WIDTH) -> str:
    """Return one row per bundle: its peak, the peak of inference of the source in pale, a ring for the peer.

    Peaks are in bytes: those of the step, of inference, and of the peer or None.
    """
    with open_figure(1, 1, 0.5 + 0.24 * len(names), width=width) as (figure, (axes,)):
        places = np.arange(len(names))
        axes.barh(places, [peak / 2**20 for peak, _, _ in peaks], color=BEST, height=0.55)
        axes.barh(places, [inference / 2**20 for _, inference, _ in peaks], color=PALE, height=0.25)
        _rings(axes, [None if peer is None else peer / 2**20 for _, _, peer in peaks])
        _rows_down(axes, names)
        axes.set_xlabel("MiB")
        return drawn(figure, f"memory {names} {width}")


def _rings(axes: Axes, values: Sequence[float | None]) -> None:
    points = [(value, place) for place, value in enumerate(values) if value is not None]
    if points:
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, facecolors="none", edgecolors=INK, s=34, linewidths=1.2, zorder=3)


def _rows_down(axes: Axes, names: Sequence[str]) -> None:
    """Write the names at the left, the first name on top."""
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
