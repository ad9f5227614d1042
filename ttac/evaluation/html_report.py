"""One HTML page with the tables and plots of an evaluation; it loads nothing else, and has a light and a dark form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from importlib.util import find_spec
from typing import Any

import numpy as np

from ttac.errors import RuntimeMissingError
from ttac.evaluation.metrics import expected_calibration_error
from ttac.evaluation.tables import SETTING, Table, calibration, figure_text, is_labelled, total_rows
from ttac.evaluation.verdict import verdict
from ttac.reports.plan_picture import plan_picture
from ttac.sizes import format_size

NEEDS = ("jinja2", "matplotlib")
PAGE = "page.html.jinja"
KEPT = "kept."
"""Prefix of the scalars in `adapter.stats` that are keep ratios: the fraction of a layer's input that was kept."""
ABSENT = "–"
"""Text of a figure that does not exist."""

Result = Mapping[str, Any]


def check_installed() -> None:
    """Raise RuntimeMissingError where a package that the report needs is not installed."""
    for name in NEEDS:
        if find_spec(name) is None:
            raise RuntimeMissingError(f"the report needs `{name}`", hint="`pip install 'ttac[eval]'`")


def page(
    tables: Sequence[Table],
    results: Sequence[Result],
    *,
    missing: Sequence[tuple[str, str, str]] = (),
    reports: Mapping[tuple[str, str, int], Result],
    facts: Mapping[str, Any],
) -> str:
    """Return the page; raises RuntimeMissingError without the extra `eval`.

    Args:
        missing: model, method and reason of each pair without a result.
        reports: (model, method, batch) -> report of the bundle, with the memory plan.
        facts: `data`, the name of the samples, and `about`, as `Evaluation` has them.
    """
    check_installed()
    return rendered(
        "report.html.jinja",
        title=" and ".join(dict.fromkeys(str(table.setting["model"]) for table in tables)) or "nothing",
        verdict=verdict(tables),
        facts=_facts(results, facts),
        labelled=is_labelled(results),
        methods=list(dict.fromkeys(method for table in tables for method in table.methods)),
        overview=_overview(tables),
        sections=[section(table, results, reports) for table in tables],
        missing=missing,
    )


def rendered(name: str, **facts: Any) -> str:
    """Return the template `name` with the facts filled in; raises RuntimeMissingError without the extra `eval`."""
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
    environment.filters["svg"] = lambda picture: markupsafe.Markup(_picture(picture))
    page: str = environment.get_template(name).render(**facts)
    return page


def _picture(picture: str | Mapping[str, str]) -> str:
    """The elements of a picture; of one for a desk and one for a phone, the page shows the one that fits."""
    if isinstance(picture, str):
        return picture
    return "".join(f'<div class="{place}">{svg}</div>' for place, svg in picture.items())


def section(
    table: Table, all_results: Sequence[Result], reports: Mapping[tuple[str, str, int], Result]
) -> dict[str, Any]:
    """Return the values that the template fills into the section of one setting."""
    from ttac.evaluation import plots

    results = [result for result in all_results if _belongs(result, table.setting)]
    scale, unit = (100.0, "%") if table.labelled else (1.0, "nats")
    courses, names, choice = _courses(results)
    bins = {m: counts for m in table.methods if (counts := calibration(_of(results, m))) is not None}
    errors = {method: expected_calibration_error(counts) for method, counts in bins.items()}
    mean = {method: value for method, value in table.means.items() if value is not None}
    shown = {"mean": mean, **table.errors} if len(table.errors) > 1 else table.errors
    return {
        "column": table.column,
        "heading": f"{table.setting['model']}, {table.setting['protocol']}, batch {table.setting['batch']}",
        "order": table.setting["order"],
        "methods": table.methods,
        "rows": _rows(table),
        "totals": total_rows(table, ABSENT),
        "bars": plots.both(lambda width: plots.bars(shown, table.methods, unit, scale, width)),
        "stream": plots.both(lambda width: plots.stream(courses, names, table.labelled, width)),
        "costs": _costs(table, unit, scale),
        "stream_of": choice,
        "calibration": plots.both(lambda width: plots.calibration(bins, errors, width)) if bins else None,
        "plans": _plans(table, reports),
        "ratios": _keep_ratios(courses),
    }


def _facts(results: Sequence[Result], facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return name and text of each circumstance: samples, command, settings of methods, machine, versions and date."""
    about = facts["about"]
    methods = {(result["model"], result["method"]): _changes(result) for result in results}
    counts = {
        (len(result["parts"]), sum(part["samples"] for part in result["parts"])): result["model"] for result in results
    }
    rows = {
        "samples": facts["data"],
        "counts": "; ".join(f"{samples:,} in a stream of {shifts} shifts" for shifts, samples in counts),
        "settings": "; ".join(dict.fromkeys(f"{method}: {text}" for (_, method), text in methods.items() if text)),
        "command": about.get("command", ""),
        "machine": about.get("machine", ""),
        "threads": {"0": "the engine's choice"}.get(about.get("threads", ""), about.get("threads", "")),
        "versions": about.get("packages", ""),
        "date": about.get("date", ""),
    }
    return [(name, text) for name, text in rows.items() if text]


def _changes(result: Result) -> str:
    """The settings of a method's bundle that differ between methods, as text; empty for a bundle made elsewhere."""
    options = result["cell"].get("subject", {}).get("options", {})
    settings = options.get("settings") or {}
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _costs(table: Table, unit: str, scale: float) -> dict[str, str] | None:
    """Return the picture of the error over the time per sample; None where every method lacks one of them."""
    from ttac.evaluation import plots

    times, means = table.totals["ms_per_sample"], table.means
    points = {
        method: (time, scale * mean)
        for method in table.methods
        if (time := times.get(method)) is not None and (mean := means.get(method)) is not None
    }
    label = f"{table.figure if table.labelled else 'entropy'}, {unit}"
    return plots.both(lambda width: plots.costs_of_error(points, label, width)) if points else None


def _belongs(result: Result, setting: Mapping[str, Any]) -> bool:
    facts = {**result["cell"], "model": result["model"]}
    return all(facts[name] == setting[name] for name in SETTING)


def _of(results: Sequence[Result], method: str) -> list[Result]:
    return [result for result in results if result["method"] == method]


def _overview(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Return the mean of each setting by method, and the methods with the best mean."""
    return [
        {
            "setting": [table.setting[name] for name in SETTING],
            "means": {method: figure_text(table, table.means[method], ABSENT) for method in table.methods},
            "best": _best(table.means),
        }
        for table in tables
    ]


def _best(values: Mapping[str, float | None]) -> set[str]:
    """Return the methods with the smallest value."""
    known = {method: value for method, value in values.items() if value is not None}
    return {method for method, value in known.items() if value == min(known.values())}


def _rows(table: Table) -> list[dict[str, Any]]:
    """Return one row per shift, and the mean as the last row."""
    return [
        {
            "name": shift.replace("_", " "),
            "cells": [figure_text(table, row.get(method), ABSENT) for method in table.methods],
            "best": [method in _best(row) for method in table.methods],
        }
        for shift, row in {**table.errors, "mean": table.means}.items()
    ]


def _courses(results: Sequence[Result]) -> tuple[dict[str, list[Result]], list[str], str]:
    """Return the windows of each method along the stream, the names of the shifts, and the choice of cells as text.

    The cells of the first seed and of the highest severity are chosen.
    """
    seed = results[0]["cell"]["seed"]
    several = len({result["cell"]["seed"] for result in results}) > 1
    levels = {tuple(level for _, level in result["cell"]["shifts"] if level is not None) for result in results}
    severity = max((max(level) for level in levels if level), default=None)
    courses: dict[str, list[Result]] = {}
    names: dict[str, list[str]] = {}
    for result in results:
        if not _is_chosen(result["cell"], seed, severity):
            continue
        course, before = courses.setdefault(result["method"], []), names.setdefault(result["method"], [])
        course.extend({**window, "shift": len(before) + max(0, window["shift"])} for window in result["trace"])
        mixed = result["cell"]["protocol"] == "mixed"
        before.extend(["all"] if mixed else [name for name, _ in result["cell"]["shifts"]])
    choice = [f"severity {severity}"] if severity is not None and len(levels) > 1 else []
    return courses, next(iter(names.values())), ", ".join([*choice, *([f"seed {seed}"] if several else [])])


def _is_chosen(cell: Mapping[str, Any], seed: int, severity: int | None) -> bool:
    levels = [level for _, level in cell["shifts"]]
    if cell["seed"] != seed or not any(level in (None, severity) for level in levels):
        return False
    return severity is None or max(level or severity for level in levels) == severity


def _plans(table: Table, reports: Mapping[tuple[str, str, int], Result]) -> list[dict[str, str]]:
    """Return one picture for each different memory plan, with the names of the methods that share it."""
    methods: dict[str, list[str]] = {}
    different: dict[str, Result] = {}
    for method in table.methods:
        report = reports.get((table.setting["model"], method, table.setting["batch"]), {})
        if report.get("plan"):
            key = repr(report["plan"])
            methods.setdefault(key, []).append(method)
            different[key] = report
    return [
        {
            "methods": ", ".join(methods[key]),
            "kept": format_size(report["planned"]["residuals"]),
            "dense": format_size(report["planned"]["dense"]),
            "svg": plan_picture(report["plan"], f"Memory plan, {', '.join(methods[key])}"),
        }
        for key, report in different.items()
    ]


def _keep_ratios(courses: Mapping[str, Sequence[Result]]) -> list[dict[str, Any]]:
    """Return, for methods that report them, a plot of each layer's keep ratio along the stream."""
    from ttac.evaluation import plots

    pictures = []
    for method, course in courses.items():
        names = [name for name in course[0]["stats"] if name.startswith(KEPT)]
        samples = np.cumsum([window["samples"] for window in course]).tolist()
        if len(names) > 1 and all(set(names) <= set(window["stats"]) for window in course):
            lines = {
                name.removeprefix(KEPT): [(x, window["stats"][name]) for x, window in zip(samples, course, strict=True)]
                for name in names
            }
            draw = partial(plots.keep_ratios, lines, method)
            pictures.append({"method": method, "svg": plots.both(draw)})
    return pictures
