"""`ttac inspect`: what a model offers to adaptation, or what a bundle does and needs."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click

from ttac.cli.bundles import contents, is_bundle, summary
from ttac.cli.options import PATH, as_json, model, terminal, verbose
from ttac.cli.reports import render
from ttac.cli.terminal import Terminal
from ttac.errors import UsageError


@click.command("inspect", short_help="Show what a model offers to adaptation, or a bundle's plan.")
@click.argument("path", metavar="MODEL_OR_BUNDLE", type=PATH)
@model
@as_json
@verbose
@terminal
def inspect(terminal: Terminal, /, path: Path, as_json: bool, **choices: Any) -> None:
    """Show a model's norms, operators and fitting methods, or a bundle's plan and verified numbers."""
    if not path.exists():
        raise UsageError("there is no such model or bundle", where=f"`{path}`", hint="give an `.onnx` file or a bundle")
    if is_bundle(path):
        from ttac.runtime.bundle import Bundle

        bundle = Bundle.read(path)
        report = contents(bundle) if as_json else summary(bundle)
    else:
        report = _model(terminal, path, **choices)
    if as_json:
        terminal.json(report)
    else:
        render(terminal, report)


def _model(terminal: Terminal, path: Path, **choices: Any) -> dict[str, Any]:
    from ttac.inspection import inspect_model

    choices["input"] = choices.pop("input_name")
    with redirect_stdout(sys.stderr):
        return inspect_model(path, say=terminal.say, **choices)
