"""`ttac inspect`: the norms and methods of a model, a bundle with or without its plan, or two graphs compared."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttac.cli.bundle_summary import contents, overview, summary, verdict
from ttac.cli.common_options import CONTEXT, MODEL, PATH, as_json, compile_options, terminal, verbose
from ttac.cli.report_text import render
from ttac.cli.terminal import Terminal
from ttac.errors import UsageError
from ttac.runtime.bundle import is_bundle
from ttac.staging import as_folder

if TYPE_CHECKING:
    from ttac.runtime.bundle import Bundle

LONGEST = 60
"""Most characters of a reason that stands at every method."""


@click.command("inspect", context_settings=CONTEXT, short_help="Show a model's norms and methods, or a bundle.")
@click.argument("path", metavar="MODEL_OR_BUNDLE", type=PATH)
@click.argument("other", metavar="[OTHER]", type=PATH, required=False)
@click.option("--plan", is_flag=True, help="Also show a bundle's memory plan, rooms and verified numbers.")
@click.option("--svg", metavar="FILE", type=PATH, help="Draw a bundle's memory plan, one bar per layer.")
@compile_options(*MODEL, "calibration")
@as_json
@verbose
@terminal
def inspect(
    terminal: Terminal, /, path: Path, other: Path | None, plan: bool, svg: Path | None, as_json: bool, **choices: Any
) -> None:
    """Show a model's norms, operators and fitting methods, or a bundle's method, cost and settings.

    With OTHER, show the nodes that only one of the two graphs has, by the room of the compile that made them. Give two
    files or folders from `ttac compile --dump`, or a model and a bundle.
    """
    for file in (path, *([other] if other else [])):
        if not file.exists():
            hint = "give an `.onnx` file or a bundle"
            raise UsageError("there is no such model or bundle", where=f"`{file}`", hint=hint)
    for option, given in (("--svg", svg is not None), ("--plan", plan)):
        if given and (other is not None or not is_bundle(path)):
            raise UsageError("only a bundle has a plan", where=f"`{option}`", hint="give one bundle")
    if other:
        report = _comparison(path, other, as_json)
    elif is_bundle(path):
        report = _bundle(terminal, path, svg, plan, as_json)
    else:
        report = _model(terminal, path, **choices)
    if as_json:
        terminal.json(report)
    else:
        render(terminal, _with_short_reasons(report))


def _with_short_reasons(report: dict[str, Any]) -> dict[str, Any]:
    """The report, where a long reason stands once: further methods with this reason name the first of them."""
    if "methods" not in report:
        return report
    first: dict[str, str] = {}
    rows = []
    for row in report["methods"]:
        because, method = row["because"], first.setdefault(row["because"], row["method"])
        short = len(because) <= LONGEST or method == row["method"]
        rows.append(row if short else {**row, "because": f"as `{method}`"})
    return {**report, "methods": rows}


def _comparison(path: Path, other: Path, as_json: bool) -> dict[str, Any]:
    from ttac.reports.comparison import compare_graphs

    with as_folder(path) as before, as_folder(other) as after:
        report = compare_graphs(before, after)
    if not as_json:
        report["changes"] = [{name: row[name] for name in row if name != "nodes"} for row in report["changes"]]
    return report


def _bundle(terminal: Terminal, path: Path, svg: Path | None, plan: bool, as_json: bool) -> dict[str, Any]:
    from ttac.runtime.bundle import Bundle

    bundle = Bundle.read(path)
    if svg is not None:
        _draw(bundle, svg)
        terminal.say(f"plan drawn: {svg}")
    if as_json:
        return contents(bundle)
    for line in verdict(bundle):
        terminal.data(line)
    terminal.data("")
    return summary(bundle) if plan else overview(bundle)


def _draw(bundle: Bundle, svg: Path) -> None:
    """Write the picture of the plan; raises UsageError if there is no plan because the method has no backward."""
    from ttac.reports.plan_picture import plan_picture

    plan, method = bundle.report.get("plan"), bundle.manifest["method"]["name"]
    if not plan:
        problem = f"`{method}` keeps nothing for a backward, so there is no plan to draw"
        raise UsageError(
            problem, where=f"`{bundle.path}`", hint="draw the bundle of a method that trains, such as `tent`"
        )
    title = f"{bundle.manifest['source']['file']}, {method}, batch {bundle.manifest['batch']['planned']}"
    svg.write_text(plan_picture(plan, title), encoding="utf-8")


def _model(terminal: Terminal, path: Path, **choices: Any) -> dict[str, Any]:
    from ttac.inspection import inspect_model

    with redirect_stdout(sys.stderr):
        return inspect_model(path, terminal.say, **choices)
