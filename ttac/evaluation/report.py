"""One HTML page with everything an evaluation found: tables and plots, nothing fetched, light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.util import find_spec
from typing import Any

import numpy as np

from ttac.errors import RuntimeMissingError
from ttac.evaluation.evaluation import SETTING, Evaluation, Table, calibration
from ttac.evaluation.metrics import expected_calibration_error
from ttac.sizes import format_size

NEEDS = ("jinja2", "matplotlib")
PAGE = "page.html.jinja"
KEPT = "kept."
"""Scalars of `adapter.stats` whose names begin so are the shares of a layer's input that were kept."""


def check_installed() -> None:
    """Raise RuntimeMissingError where a package that the report needs is not installed."""
    for name in NEEDS:
        if find_spec(name) is None:
            raise RuntimeMissingError(f"the report needs `{name}`", hint="`pip install 'ttac[eval]'`")


def page(found: Evaluation) -> str:
    """The page; raises RuntimeMissingError without the extra `eval`."""
    import ttac

    check_installed()
    tables = found.tables()
    return rendered(
        "report.html.jinja",
        title=" and ".join(dict.fromkeys(str(table.setting["model"]) for table in tables)) or "nothing",
        data=found.data,
        labelled=found.labelled,
        version=ttac.__version__,
        methods=list(dict.fromkeys(method for table in tables for method in table.methods)),
        overview=_overview(tables),
        sections=[section(found, table) for table in tables],
        missing=[(m.cell.subject.model, m.cell.subject.method, m.reason.what) for m in _distinct(found)],
    )


def rendered(name: str, **facts: Any) -> str:
    """The template of that name with the facts filled in; raises RuntimeMissingError without the extra `eval`."""
    check_installed()
    import jinja2
    import markupsafe

    files = resources.files("ttac.evaluation")
    texts = {each: files.joinpath(each).read_text(encoding="utf-8") for each in (PAGE, name)}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda text: markupsafe.Markup(text)
    page: str = environment.get_template(name).render(**facts)
    return page


def section(found: Evaluation, table: Table) -> dict[str, Any]:
    """What the template shows of one setting."""
    from ttac.evaluation import plots

    results = [result for result in found.results if _belongs(result, table.setting)]
    scale, unit = (100.0, "%") if table.labelled else (1.0, "nats")
    courses, names, told = _courses(results)
    bins = {m: counted for m in table.methods if (counted := calibration(_of(results, m))) is not None}
    errors = {method: expected_calibration_error(counted) for method, counted in bins.items()}
    shown = {"mean": {m: e for m in table.methods if (e := _mean(table, m)) is not None}, **table.errors}
    return {
        "heading": f"{table.setting['model']}, {table.setting['protocol']}, batch {table.setting['batch']}",
        "order": table.setting["order"],
        "methods": table.methods,
        "rows": _rows(table),
        "totals": _totals(table),
        "bars": plots.bars(shown if len(table.errors) > 1 else table.errors, table.methods, unit, scale),
        "stream": plots.stream(courses, names, table.labelled),
        "stream_of": told,
        "calibration": plots.calibration(bins, errors) if bins else "",
        "plans": _plans(found, table),
        "ratios": _ratios(courses),
    }


def _belongs(result: Mapping[str, Any], setting: Mapping[str, Any]) -> bool:
    facts = {**result["cell"], "model": result["model"]}
    return all(facts[name] == setting[name] for name in SETTING)


def _of(results: Sequence[Mapping[str, Any]], method: str) -> list[Mapping[str, Any]]:
    return [result for result in results if result["method"] == method]


def _mean(table: Table, method: str) -> float | None:
    return table.totals["error" if table.labelled else "entropy"][method]


def _overview(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """The mean of each setting, by method."""
    return [
        {
            "setting": [table.setting[name] for name in SETTING],
            "means": {method: _told(table, _mean(table, method)) for method in table.methods},
            "best": _best({method: _mean(table, method) for method in table.methods}),
        }
        for table in tables
    ]


def _told(table: Table, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}" if table.labelled else f"{value:.3f}"


def _best(values: Mapping[str, float | None]) -> set[str]:
    """The methods with the smallest value."""
    there = {method: value for method, value in values.items() if value is not None}
    return {method for method, value in there.items() if value == min(there.values())}


def _rows(table: Table) -> list[dict[str, Any]]:
    rows = {**table.errors, "mean": {method: _mean(table, method) for method in table.methods}}
    return [
        {
            "name": shift.replace("_", " "),
            "cells": [_told(table, row.get(method)) for method in table.methods],
            "best": [method in _best(dict(row)) for method in table.methods],
        }
        for shift, row in rows.items()
    ]


def _totals(table: Table) -> list[tuple[str, list[str]]]:
    """Further figures as text."""

    def told(name: str, scale: float, digits: int) -> list[str]:
        values = [table.totals[name][method] for method in table.methods]
        return ["–" if value is None else f"{scale * value:.{digits}f}" for value in values]

    peaks = [table.totals["peak_bytes"][method] for method in table.methods]
    lines = [("drift from source, %", told("drift", 100, 1)), ("ms per sample", told("ms_per_sample", 1, 3))]
    lines.append(("peak memory", ["–" if peak is None else format_size(int(peak)) for peak in peaks]))
    if table.labelled:
        lines[:0] = [("calibration error, %", told("ece", 100, 1)), ("entropy, nats", told("entropy", 1, 3))]
    if table.spread:
        scale, digits = (100, 2) if table.labelled else (1, 4)
        lines.insert(0, ("deviation over seeds", [f"{scale * table.spread[m]:.{digits}f}" for m in table.methods]))
    return lines


def _courses(results: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[Mapping[str, Any]]], list[str], str]:
    """Each method's course through the cells of the first seed and the highest severity; the shifts' names; which."""
    seed = results[0]["cell"]["seed"]
    several = len({result["cell"]["seed"] for result in results}) > 1
    levels = {tuple(level for _, level in result["cell"]["shifts"] if level is not None) for result in results}
    severity = max((max(level) for level in levels if level), default=None)
    courses: dict[str, list[Mapping[str, Any]]] = {}
    names: dict[str, list[str]] = {}
    for result in results:
        shifts = result["cell"]["shifts"]
        kept = result["cell"]["seed"] == seed and any(level in (None, severity) for _, level in shifts)
        if not kept or (severity is not None and max((level or severity) for _, level in shifts) != severity):
            continue
        course, before = courses.setdefault(result["method"], []), names.setdefault(result["method"], [])
        course.extend({**window, "shift": len(before) + max(0, window["shift"])} for window in result["trace"])
        mixed = result["cell"]["protocol"] == "mixed"
        before.extend(["all"] if mixed else [name for name, _ in shifts])
    told = [f"severity {severity}"] if severity is not None and len(levels) > 1 else []
    return courses, next(iter(names.values())), ", ".join([*told, *([f"seed {seed}"] if several else [])])


def _plans(found: Evaluation, table: Table) -> list[dict[str, str]]:
    """One plot for each different memory plan, with the methods that share it."""
    from ttac.evaluation import plots

    shared: dict[str, list[str]] = {}
    rows: dict[str, Any] = {}
    for method in table.methods:
        report = found.reports.get((table.setting["model"], method, table.setting["batch"]), {})
        if report.get("plan"):
            key = repr(report["plan"])
            shared.setdefault(key, []).append(method)
            rows[key] = report
    return [
        {
            "methods": ", ".join(methods),
            "kept": format_size(rows[key]["planned"]["residuals"]),
            "dense": format_size(rows[key]["planned"]["dense"]),
            "svg": plots.plan(rows[key]["plan"], f"{table.setting} {methods}"),
        }
        for key, methods in shared.items()
    ]


def _ratios(courses: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    """For methods that report them: the share kept of each layer over time."""
    from ttac.evaluation import plots

    made = []
    for method, course in courses.items():
        names = [name for name in course[0]["stats"] if name.startswith(KEPT)]
        seen = np.cumsum([window["samples"] for window in course]).tolist()
        if len(names) > 1 and all(set(names) <= set(window["stats"]) for window in course):
            lines = {
                name.removeprefix(KEPT): [(x, window["stats"][name]) for x, window in zip(seen, course, strict=True)]
                for name in names
            }
            made.append({"method": method, "svg": plots.ratios(lines, method)})
    return made


def _distinct(found: Evaluation) -> list[Any]:
    """One missing cell for each model and method."""
    return list({(m.cell.subject.model, m.cell.subject.method): m for m in found.missing}.values())
