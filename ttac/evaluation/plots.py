"""The plots of the HTML reports: SVG elements in the colours of the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ttac.evaluation.subjects import SOURCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, ACCENT, BEST, PALE = "#010203", "#020304", "#030405", "#040506", "#050607", "#0c0d0e"
"""Placeholder colours that no plot contains by chance; each becomes a variable of the page."""

SERIES = ("#0d0e0f", "#0e0f10", "#0f1011", "#0a1112", "#0b1213", "#0c1314")
"""Placeholder colours of the methods in a plot that shows all of them."""

VARIABLES = {
    **{colour: f"series-{number}" for number, colour in enumerate(SERIES, 1)},
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    ACCENT: "accent",
    BEST: "best",
    PALE: "pale",
}
"""Name of the page's variable for each colour."""
STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "path.simplify": True,
}
SLANTED: dict[str, Any] = {
    "rotation": 30,
    "rotation_mode": "anchor",
    "fontsize": 7,
    "ha": "left",
    "va": "bottom",
    "color": MUTED,
}
LEGEND: dict[str, Any] = {"fontsize": 8.5, "handlelength": 1.6, "columnspacing": 1.2}
WIDTH = 11.0
"""Inches of the widest figures."""
NARROW = 5.4
"""Inches of figures with one panel."""
PHONE = 3.9
"""Inches of a figure on a phone, with letters of the same size."""
WIDE = 5
"""Most panels in a row."""
NUMBERED = re.compile(r' id="[A-Za-z0-9.]+_\d+"')
"""Identifiers that matplotlib numbers; two figures in one page would share them."""
DECLARED = re.compile(r"#0[1-9a-f][01][0-9a-f][01][0-9a-f]")
"""Colours of the form of the placeholders."""


def plain(text: str) -> str:
    """Return the text with its dollars escaped: matplotlib reads text between dollars as a formula."""
    return text.replace("$", r"\$")


def both(draw: Callable[[float], str]) -> dict[str, str]:
    """Return a picture twice: for a desk, and for a phone.  `draw` makes it as wide as its argument, in inches."""
    return {"desk": draw(WIDTH), "phone": draw(PHONE)}


def bars(
    errors: Mapping[str, Mapping[str, float]],
    methods: Sequence[str],
    unit: str,
    scale: float,
    width: float = WIDTH,
) -> str:
    """Return one panel per shift with one bar per method; the best bar has its own colour, `source` is pale."""
    columns = _columns(len(errors), width)
    with open_figure(len(errors), columns, 0.62 + 0.21 * len(methods), width=width) as (figure, panels):
        highest = scale * max((value for row in errors.values() for value in row.values()), default=1.0)
        for number, (axes, (shift, row)) in enumerate(zip(panels, errors.items(), strict=True)):
            values = [scale * row.get(method, np.nan) for method in methods]
            best = np.nanmin([*values, np.inf])
            colours = [
                BEST if value == best else PALE if method == SOURCE else ACCENT
                for method, value in zip(methods, values, strict=True)
            ]
            axes.barh(range(len(methods)), values, color=colours, height=0.72)
            for place, value in enumerate(values):
                if np.isfinite(value):
                    label = f"{value:.{1 if scale > 1 else 2}f}"
                    axes.text(value + 0.012 * highest, place, label, va="center", fontsize=7.5)
            names = [plain(method) if number % columns == 0 else "" for method in methods]
            axes.set_yticks(range(len(methods)), names)
            axes.invert_yaxis()
            axes.set_xlim(0, 1.17 * highest)
            axes.set_title(plain(shift.replace("_", " ")))
            axes.grid(visible=False)
            axes.spines[["bottom", "left"]].set_visible(False)
            axes.set_xticks([])
        return drawn(figure, f"bars {unit} {list(errors)} {width}")


def stream(
    courses: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str], labelled: bool, width: float = WIDTH
) -> str:
    """Return the error (or entropy) of all methods along the stream in one panel with a legend; `source` is dashed."""
    with open_figure(1, 1, 3.1, top=0.5, width=min(width, NARROW)) as (figure, (axes,)):
        highest = 1.05 * max(float(line.max()) for course in courses.values() for _, line in _lines(course, labelled))
        for method, style in zip(courses, _styles(courses), strict=True):
            _draw(axes, courses[method], labelled, linewidth=1.6, label=plain(method), **style)
        _borders(axes, next(iter(courses.values())), names, highest)
        axes.set_ylim(0, highest)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("error, %" if labelled else "entropy, nats")
        axes.set_xlabel("samples")
        figure.legend(loc="outside lower left", ncols=4 if width > PHONE else 3, **LEGEND)
        return drawn(figure, f"stream {list(courses)} {width}")


def costs_of_error(points: Mapping[str, tuple[float, float]], label: str, width: float = WIDTH) -> str:
    """Return one dot per method: its error over its time; a line joins the methods that no other beats in both.

    Args:
        points: method -> milliseconds per sample, and the figure that `label` names.
    """
    with open_figure(1, 1, 2.9, width=min(width, NARROW)) as (figure, (axes,)):
        front = sorted(point for point in points.values() if not any(_beats(other, point) for other in points.values()))
        axes.plot(*zip(*front, strict=True), color=GRID, linewidth=1.5, zorder=1)
        for (method, point), style in zip(points.items(), _styles(points), strict=True):
            axes.scatter(*point, color=style["color"], s=38, linewidths=0, zorder=3)
            axes.annotate(plain(method), point, (6, 4), textcoords="offset points", fontsize=8.5, color=INK)
        axes.margins(x=0.18, y=0.15)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("milliseconds per sample")
        axes.set_ylabel(label)
        return drawn(figure, f"costs of error {list(points)} {width}")


def _beats(other: tuple[float, float], point: tuple[float, float]) -> bool:
    """Whether `other` is at most as slow and as wrong, and better in one of them."""
    return other != point and other[0] <= point[0] and other[1] <= point[1]


def _styles(methods: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield colour and line of each method: the colours in turn, the next round with other dashes."""
    number = 0
    for method in methods:
        if method == SOURCE:
            yield {"color": MUTED, "linestyle": (0, (4, 2))}
            continue
        turn, place = divmod(number, len(SERIES))
        yield {"color": SERIES[place], "linestyle": ("-", (0, (1, 1)), (0, (5, 1, 1, 1)))[turn % 3]}
        number += 1


def calibration(bins: Mapping[str, np.ndarray], errors: Mapping[str, float], width: float = WIDTH) -> str:
    """Return one panel per method: the fraction of right predictions over the confidence; `bins` are [n, 3]."""
    most = _columns(WIDE, width)
    columns = min(most, len(bins))
    with open_figure(len(bins), columns, 2.1, width=width * columns / most) as (figure, panels):
        for axes, (method, counted) in zip(panels, bins.items(), strict=True):
            filled = counted[counted[:, 0] > 0]
            x, y = 100 * filled[:, 1] / filled[:, 0], 100 * filled[:, 2] / filled[:, 0]
            axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
            axes.plot(x, y, color=BEST, linewidth=1.3)
            axes.scatter(x, y, s=8 + 140 * filled[:, 0] / counted[:, 0].sum(), color=BEST, linewidths=0)
            axes.set(xlim=(0, 103), ylim=(0, 103), aspect="equal", xticks=[0, 50, 100], yticks=[0, 50, 100])
            axes.set_title(plain(f"{method}  {100 * errors[method]:.1f} %"))
        panels[0].set_ylabel("right, %")
        for axes in panels:
            axes.set_xlabel("confidence, %")
        return drawn(figure, f"calibration {list(bins)} {width}")


def keep_ratios(courses: Mapping[str, Sequence[tuple[float, float]]], key: str, width: float = WIDTH) -> str:
    """Return one row per layer with time to the right: the colour shows the keep ratio."""
    with open_figure(1, 1, 0.8 + 0.17 * len(courses), width=width) as (figure, (axes,)):
        values = np.array([[value for _, value in course] for course in courses.values()])
        end = max(x for course in courses.values() for x, _ in course)
        style: dict[str, Any] = {"aspect": "auto", "vmin": 0, "vmax": 1, "cmap": "viridis", "interpolation": "nearest"}
        image = axes.imshow(values, extent=(0, end, len(courses), 0), **style)
        axes.set_yticks(np.arange(len(courses)) + 0.5, [plain(name) for name in courses], fontsize=7)
        axes.set_xlabel("samples")
        axes.grid(visible=False)
        bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03)
        bar.set_label("kept", color=MUTED)
        bar.outline.set_visible(False)  # type: ignore[operator, unused-ignore]
        return drawn(figure, f"ratios {key} {width}")


def _columns(panels: int, width: float) -> int:
    """Number of panels in a row."""
    return min(WIDE if panels > 4 else max(1, panels), WIDE if width > PHONE else 2)


def drawn(figure: Figure, salt: str) -> str:
    """Return the figure as an `<svg>` element whose colours are variables of the page."""
    import matplotlib
    from matplotlib import pyplot

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        facts = {"Date": None, "Creator": None}
        figure.savefig(text, format="svg", transparent=True, bbox_inches="tight", metadata=facts)
    pyplot.close(figure)
    element = text.getvalue()
    element = NUMBERED.sub("", element[element.index("<svg") :])
    return DECLARED.sub(lambda match: f"var(--{VARIABLES[match[0]]})" if match[0] in VARIABLES else match[0], element)


@contextmanager
def open_figure(
    count: int, columns: int, height: float, top: float = 0.0, width: float = WIDTH
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open a figure with `count` panels of `height` inches each, and close it at the end."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = -(-count // columns)
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(width, height * rows + top), layout="constrained", squeeze=False
        )
        panels = list(axes.flat)
        for spare in panels[count:]:
            spare.set_visible(False)
        try:
            yield figure, panels[:count]
        finally:
            pyplot.close(figure)


def _draw(axes: Axes, course: Sequence[Mapping[str, Any]], labelled: bool, **style: Any) -> None:
    """Draw the course as lines that break where the shift changes."""
    for number, (x, y) in enumerate(_lines(course, labelled)):
        axes.plot(x, y, solid_capstyle="round", **{**style, "label": style["label"] if number == 0 else None})


def _lines(course: Sequence[Mapping[str, Any]], labelled: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for each shift, the number of samples so far and the figure, averaged over a few neighbouring windows."""
    start = 0
    for windows in _shifts(course):
        sizes = np.array([window["samples"] for window in windows], float)
        counts = np.array([window["counted"] for window in windows], float) if labelled else sizes
        sums = [window["wrong"] if labelled else window["entropy"] * window["samples"] for window in windows]
        values = np.array(sums, float)
        reach = np.ones(max(1, len(windows) // 6))
        smooth = np.convolve(values, reach, "same") / np.convolve(counts, reach, "same").clip(1)
        yield start + np.cumsum(sizes) - sizes / 2, (100 if labelled else 1) * smooth
        start += int(sizes.sum())


def _shifts(course: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the windows of one shift after the other."""
    part: list[Mapping[str, Any]] = []
    for window in course:
        if part and part[-1]["shift"] != window["shift"]:
            yield part
            part = []
        part.append(window)
    if part:
        yield part


def _borders(axes: Axes, course: Sequence[Mapping[str, Any]], names: Sequence[str], top: float) -> None:
    """Draw a thin line where the shift changes, and the names of the shifts above."""
    start = 0
    for number, part in enumerate(_shifts(course)):
        if number:
            axes.axvline(start, color=GRID, linewidth=0.7)
        size = sum(window["samples"] for window in part)
        if len(names) > 1 and number < len(names):
            name = plain(names[number].replace("_", " "))
            axes.text(start + size / 2, 1.01 * top, name, **SLANTED)
        start += size
    axes.set_xlim(0, start)
