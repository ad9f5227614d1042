"""`ttac doctor`: whether this machine can compile and run bundles."""

from __future__ import annotations

import click
from rich.text import Text

from ttac import targets
from ttac.cli.common_options import CONTEXT, as_json, terminal, verbose
from ttac.cli.terminal import Terminal
from ttac.errors import RuntimeMissingError
from ttac.reports import doctor

STYLES = {"ok": "green", "info": "dim", "warn": "yellow", "fail": "bold red"}


@click.command("doctor", context_settings=CONTEXT)
@click.option("--target", metavar="T", help="Check this machine against a target, or a target's `.toml` file.")
@as_json
@verbose
@terminal
def doctor_command(terminal: Terminal, target: str | None, as_json: bool) -> None:
    """Check Python, the engine, its limits and known bad versions."""
    checks = doctor.examine(targets.find(target) if target else None)
    if as_json:
        terminal.json(doctor.as_json(checks))
    else:
        rows = [(Text(check.verdict, STYLES[check.verdict]), check.part, check.found, check.note) for check in checks]
        terminal.table(("", "part", "found", "note"), rows)
    failed = [check for check in checks if check.verdict == "fail"]
    for check in checks:
        if check.verdict == "warn" and not as_json:
            terminal.say(f"warning: {check.part}: {check.found}, {check.note}")
    if failed:
        problem = "; ".join(f"{check.part}: {check.found}" + (f", {check.note}" * bool(check.note)) for check in failed)
        raise RuntimeMissingError(problem, hint=next((f"`{check.hint}`" for check in failed if check.hint), ""))
