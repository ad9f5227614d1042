"""What an evaluation found: rows for programs, tables for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ttac.errors import TtacError
from ttac.evaluation.cells import Cell
from ttac.evaluation.metrics import drift, expected_calibration_error, merged, unpacked
from ttac.evaluation.subjects import SOURCE

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
    "error",
    "ece",
    "entropy",
    "drift",
    "ms_per_sample",
    "peak_bytes",
    "loaded_bytes",
    "residual_bytes",
)
"""Of `Evaluation.rows`: `error`, `ece` and `drift` in 0..1, `entropy` in nats."""

SETTING = ("model", "protocol", "order", "batch")
"""What tables are made for each of."""


@dataclass(frozen=True)
class Missing:
    """A cell that gave no result, and why."""

    cell: Cell
    reason: TtacError


@dataclass(frozen=True)
class Table:
    """Error and more of all methods in one setting; the shifts are averaged over severities, places and seeds.

    Attributes:
        setting: model, protocol, order and batch.
        errors: shift -> method -> error in 0..1; entropy in nats where `labelled` is false.
        totals: name of a figure -> method -> its mean over the shifts; None where it does not exist.
        spread: method -> standard deviation over the seeds of that mean error (or entropy); empty for a single seed.
    """

    setting: Mapping[str, Any]
    methods: tuple[str, ...]
    errors: Mapping[str, Mapping[str, float]]
    totals: Mapping[str, Mapping[str, float | None]]
    labelled: bool
    spread: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """All results, in the order they were asked for.

    Attributes:
        results: one mapping for each cell, as `docs/evaluation.md` describes them.
        missing: cells without a result; methods that do not fit a model, mostly.
        reports: (model, method, batch) -> report of the bundle, with the memory plan.
        data: name of the samples.
    """

    results: Sequence[Mapping[str, Any]]
    missing: Sequence[Missing] = ()
    reports: Mapping[tuple[str, str, int], Mapping[str, Any]] = field(default_factory=dict)
    data: str = ""

    @property
    def labelled(self) -> bool:
        """Whether there are errors; without labels there are entropy, drift, time and memory."""
        return any(part["wrong"] is not None for result in self.results for part in result["parts"])

    def rows(self) -> list[dict[str, Any]]:
        """One mapping with the keys `COLUMNS` for every shift of every cell."""
        sources = {_stream(result): result for result in self.results if _named_source(result)}
        return [row for result in self.results for row in _rows(result, sources.get(_stream(result)))]

    def tables(self) -> list[Table]:
        """One table for each setting."""
        rows = self.rows()
        settings = list(dict.fromkeys(tuple(row[name] for name in SETTING) for row in rows))
        return [
            _table(dict(zip(SETTING, setting, strict=True)), [row for row in rows if _in(row, setting)])
            for setting in settings
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything for programs: rows, and the reasons of what is missing."""
        missing = [
            {
                "model": each.cell.subject.model,
                "method": each.cell.subject.method,
                "batch": each.cell.subject.batch,
                "protocol": each.cell.protocol,
                "reason": each.reason.what,
                "exit_code": each.reason.exit_code,
            }
            for each in self.missing
        ]
        return {"data": self.data, "labelled": self.labelled, "rows": self.rows(), "missing": missing}

    def csv(self) -> str:
        """The rows as comma-separated values with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return text.getvalue()

    def write_html(self, path: str | Path) -> None:
        """Write one page that holds everything it shows; raises RuntimeMissingError without the extra `eval`."""
        from ttac.evaluation.report import page

        Path(path).write_text(page(self), encoding="utf-8")


def _rows(result: Mapping[str, Any], source: Mapping[str, Any] | None) -> Iterable[dict[str, Any]]:
    asked, memory = result["cell"], result["memory"]
    shared = {
        "model": result["model"],
        "method": result["method"],
        "protocol": asked["protocol"],
        "order": asked["order"],
        "batch": asked["batch"],
        "seed": asked["seed"],
    }
    bytes_of = {
        "peak_bytes": memory.get("measured", {}).get("peak"),
        "loaded_bytes": memory.get("measured", {}).get("loaded"),
        "residual_bytes": memory.get("planned", {}).get("residuals"),
    }
    for number, part in enumerate(result["parts"]):
        error = None if part["wrong"] is None else part["wrong"] / part["samples"]
        yield {
            **shared,
            "shift": part["shift"],
            "severity": part["severity"],
            "samples": part["samples"],
            "error": error,
            "ece": None if part["bins"] is None else expected_calibration_error(np.asarray(part["bins"])),
            "entropy": part["entropy"],
            "drift": None if source is None else _drift(part, source["parts"][number]),
            "ms_per_sample": 1e3 * part["seconds"] / part["samples"],
            **bytes_of,
        }


def _drift(part: Mapping[str, Any], source: Mapping[str, Any]) -> float:
    return drift(unpacked(part["predictions"]), unpacked(source["predictions"]))


def _named_source(result: Mapping[str, Any]) -> bool:
    return bool(result["method"] == SOURCE)


def _stream(result: Mapping[str, Any]) -> str:
    """What two cells share that saw the same samples in the same order with the same model."""
    asked = {key: value for key, value in result["cell"].items() if key != "subject"}
    return f"{result['model']} {sorted(asked.items(), key=lambda item: item[0])}"


def _in(row: Mapping[str, Any], setting: Sequence[Any]) -> bool:
    return tuple(row[name] for name in SETTING) == tuple(setting)


def _table(setting: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Table:
    labelled = all(row["error"] is not None for row in rows)
    methods = tuple(dict.fromkeys(row["method"] for row in rows))
    shifts = list(dict.fromkeys(row["shift"] for row in rows))
    figure = "error" if labelled else "entropy"
    cells = {shift: {method: _mean(rows, figure, shift=shift, method=method) for method in methods} for shift in shifts}
    errors = {shift: {m: value for m, value in row.items() if value is not None} for shift, row in cells.items()}
    names = ("error", "ece", "entropy", "drift", "ms_per_sample", "peak_bytes")
    totals = {name: {method: _mean(rows, name, method=method) for method in methods} for name in names}
    return Table(setting, methods, errors, totals, labelled, _spread(rows, figure, methods))


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


def calibration(results: Iterable[Mapping[str, Any]]) -> np.ndarray | None:
    """The calibration bins of all parts of the results together, [bins, 3]; None without labels."""
    bins = [part["bins"] for result in results for part in result["parts"] if part["bins"] is not None]
    return merged(bins) if bins else None
