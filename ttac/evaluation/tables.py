"""The results of an evaluation as rows for programs and as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ttac.evaluation.answers import ERROR
from ttac.evaluation.metrics import drift, expected_calibration_error, merged, unpacked
from ttac.evaluation.subjects import SOURCE
from ttac.sizes import format_size

COLUMNS = (
    "model",
    "method",
    "protocol",
    "order",
    "batch",
    "seed",
    "shift",
    "severity",
    "samples",
    "figure",
    "error",
    "ece",
    "entropy",
    "drift",
    "ms_per_sample",
    "peak_bytes",
    "loaded_bytes",
    "residual_bytes",
)
"""Keys of a row: `error`, named by `figure`, `ece` and `drift` are fractions, `entropy` is in nats."""

SETTING = ("model", "protocol", "order", "batch")
"""Columns that are equal within one table."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Error and other figures of all methods in one setting, averaged over severities and seeds.

    Attributes:
        setting: model, protocol, order and batch.
        errors: shift -> method -> error in 0..1; entropy in nats where `labelled` is false.
        figure: name of the error.
        totals: name of a figure -> method -> its mean over the shifts; None where the figure does not exist.
        spread: method -> standard deviation over the seeds of the mean error (or entropy); empty for a single seed.
    """

    setting: Mapping[str, Any]
    methods: tuple[str, ...]
    errors: Mapping[str, Mapping[str, float]]
    totals: Mapping[str, Mapping[str, float | None]]
    labelled: bool
    figure: str = ERROR
    spread: Mapping[str, float] = field(default_factory=dict)

    @property
    def column(self) -> str:
        """The figure of `errors`, with its unit."""
        return f"{self.figure}, %" if self.labelled else "entropy, nats"

    @property
    def means(self) -> Mapping[str, float | None]:
        """Mean error of each method over the shifts; mean entropy where `labelled` is false."""
        return self.totals["error" if self.labelled else "entropy"]


def is_labelled(results: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the results hold errors; without labels they hold entropy, drift, time and memory."""
    return any(part["wrong"] is not None for result in results for part in result["parts"])


def rows_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row with the keys `COLUMNS` for every shift of every result."""
    sources = {_stream(result): result for result in results if result["method"] == SOURCE}
    return [row for result in results for row in _rows(result, sources.get(_stream(result)))]


def tables_of(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return one table for each setting among the rows."""
    settings = list(dict.fromkeys(tuple(row[name] for name in SETTING) for row in rows))
    return [
        _table(dict(zip(SETTING, setting, strict=True)), [row for row in rows if _in(row, setting)])
        for setting in settings
    ]


def calibration(results: Iterable[Mapping[str, Any]]) -> np.ndarray | None:
    """Return the sum of the calibration bins of all parts of the results, [bins, 3]; None without labels."""
    bins = [part["bins"] for result in results for part in result["parts"] if part["bins"] is not None]
    return merged(bins) if bins else None


def figure_text(table: Table, value: float | None, absent: str = "-") -> str:
    """Return an error in per cent, or an entropy in nats where the table has no labels; `absent` for None."""
    if value is None:
        return absent
    return f"{100 * value:.1f}" if table.labelled else f"{value:.3f}"


def total_rows(table: Table, absent: str = "-") -> list[tuple[str, list[str]]]:
    """Return the table's further figures as text: the name of each figure, and one cell per method."""

    def cells(values: Mapping[str, float | None], scale: float, digits: int) -> list[str]:
        chosen = [values.get(method) for method in table.methods]
        return [absent if value is None else f"{scale * value:.{digits}f}" for value in chosen]

    totals, rows = table.totals, []
    if table.labelled:
        rows.append(("calibration error, %", cells(totals["ece"], 100, 1)))
        rows.append(("entropy, nats", cells(totals["entropy"], 1, 3)))
    rows.append(("drift from source, %", cells(totals["drift"], 100, 1)))
    rows.append(("ms per sample", cells(totals["ms_per_sample"], 1, 3)))
    if table.spread:
        rows.append(("deviation over seeds", cells(table.spread, *((100, 2) if table.labelled else (1, 4)))))
    peaks = [totals["peak_bytes"][method] for method in table.methods]
    return [*rows, ("peak memory", [absent if peak is None else format_size(int(peak)) for peak in peaks])]


def _rows(result: Mapping[str, Any], source: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    cell, memory = result["cell"], result["memory"]
    shared = {name: cell[name] for name in ("protocol", "order", "batch", "seed")}
    sizes = {
        "peak_bytes": memory.get("measured", {}).get("peak"),
        "loaded_bytes": memory.get("measured", {}).get("loaded"),
        "residual_bytes": memory.get("planned", {}).get("residuals"),
    }
    for number, part in enumerate(result["parts"]):
        yield {
            **{"model": result["model"], "method": result["method"]},
            **shared,
            **{name: part[name] for name in ("shift", "severity", "samples")},
            "figure": result["figure"],
            "error": None if part["wrong"] is None else part["wrong"] / max(1, part["counted"]),
            "ece": None if part["bins"] is None else expected_calibration_error(np.asarray(part["bins"])),
            "entropy": part["entropy"],
            "drift": None if source is None else _drift(part, source["parts"][number]),
            "ms_per_sample": 1e3 * part["seconds"] / part["samples"],
            **sizes,
        }


def _drift(part: Mapping[str, Any], source: Mapping[str, Any]) -> float:
    return drift(unpacked(part["predictions"]), unpacked(source["predictions"]))


def _stream(result: Mapping[str, Any]) -> str:
    """Return a key that is equal for two cells with the same samples in the same order on the same model."""
    facts = {key: value for key, value in result["cell"].items() if key != "subject"}
    return f"{result['model']} {sorted(facts.items(), key=lambda item: item[0])}"


def _in(row: Mapping[str, Any], setting: Sequence[Any]) -> bool:
    return tuple(row[name] for name in SETTING) == tuple(setting)


def _table(setting: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Table:
    labelled = all(row["error"] is not None for row in rows)
    methods = tuple(dict.fromkeys(row["method"] for row in rows))
    shifts = list(dict.fromkeys(row["shift"] for row in rows))
    figure = "error" if labelled else "entropy"
    cells = {shift: {method: _mean(rows, figure, shift=shift, method=method) for method in methods} for shift in shifts}
    names = ("error", "ece", "entropy", "drift", "ms_per_sample", "peak_bytes")
    return Table(
        setting=setting,
        methods=methods,
        errors={shift: {m: value for m, value in row.items() if value is not None} for shift, row in cells.items()},
        totals={name: {method: _mean(rows, name, method=method) for method in methods} for name in names},
        labelled=labelled,
        figure=rows[0]["figure"],
        spread=_spread(rows, figure, methods),
    )


def _spread(rows: Sequence[Mapping[str, Any]], figure: str, methods: Sequence[str]) -> dict[str, float]:
    seeds = dict.fromkeys(row["seed"] for row in rows)
    if len(seeds) < 2:
        return {}
    means = {m: [_mean(rows, figure, method=m, seed=seed) for seed in seeds] for m in methods}
    return {m: float(np.std([v for v in each if v is not None], ddof=1)) for m, each in means.items()}


def _mean(rows: Sequence[Mapping[str, Any]], figure: str, **where: Any) -> float | None:
    values = [row[figure] for row in rows if all(row[name] == value for name, value in where.items())]
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None
