"""`ttac doctor`: whether this machine can compile and run bundles."""

from __future__ import annotations

from pathlib import Path

import click
from rich.text import Text

from ttac import targets
from ttac.cli.common_options import CONTEXT, PATH, as_json, terminal, verbose
from ttac.cli.terminal import Terminal
from ttac.errors import RuntimeMissingError, UsageError
from ttac.reports import doctor
from ttac.runtime.bundle import read_manifest
from ttac.runtime.providers import parse_providers

STYLES = {"ok": "green", "info": "dim", "warn": "yellow", "fail": "bold red"}


@click.command("doctor", context_settings=CONTEXT)
@click.argument("bundle", required=False, type=PATH)
@click.option(
    "--providers", metavar="P,...", help="With BUNDLE: execution providers, best first.  [default: the target's]"
)
@click.option("--target", metavar="T", help="Check this machine against a target, or a target's `.toml` file.")
@as_json
@verbose
@terminal
def doctor_command(
    terminal: Terminal, bundle: Path | None, providers: str | None, target: str | None, as_json: bool
) -> None:
    """Check Python, the engine, its limits and known bad versions.

    With BUNDLE, also run one step on random samples and show which execution provider runs the nodes of each graph.
    """
    if providers is not None and bundle is None:
        raise UsageError("providers are checked with a bundle", where="`--providers`", hint="ttac doctor BUNDLE ...")
    checks = doctor.examine(targets.find(target) if target else None)
    if bundle is not None:
        from ttac.reports.placement import placement_checks

        checks += placement_checks(bundle, parse_providers(providers) if providers else _stated(bundle))
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


def _stated(bundle: Path) -> tuple[str, ...]:
    """The providers of the bundle's target."""
    return tuple(read_manifest(bundle)["target"].get("providers", ["cpu"]))
