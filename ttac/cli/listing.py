"""`ttac methods` and `ttac targets`: the tables of methods and of targets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from click.shell_completion import get_completion_class

from ttac import methods, settings, targets
from ttac.cli.common_options import CONTEXT, as_json, terminal, verbose
from ttac.cli.terminal import Terminal
from ttac.errors import UsageError
from ttac.sizes import format_size
from ttac.spec import Method, Target


@click.command("methods", context_settings=CONTEXT)
@click.argument("name", required=False)
@as_json
@verbose
@terminal
def methods_command(terminal: Terminal, name: str | None, as_json: bool) -> None:
    """List the methods, or one method and its options."""
    if name is None:
        every = [methods.find(known) for known in methods.names()]
        if as_json:
            terminal.json([_method(method) for method in every])
        else:
            terminal.table(("method", "purpose", "paper"), [(m.name, m.title, m.paper or "-") for m in every])
        return
    method = methods.find(name)
    if as_json:
        terminal.json(_method(method))
        return
    terminal.facts({"method": method.name, "does": method.title, "paper": method.paper or "-", "needs": method.needs})
    if method.options:
        terminal.show()
        rows = [(o.name, settings.show(o.default), settings.describe(o), o.help) for o in method.options]
        terminal.table(("option", "default", "value", "meaning"), rows)


@click.command("targets", context_settings=CONTEXT, short_help="List the targets, or one target.")
@click.argument("name", required=False)
@click.option("--toml", "as_toml", is_flag=True, help="Print the table of NAME, as a start for your own file.")
@as_json
@verbose
@terminal
def targets_command(terminal: Terminal, name: str | None, as_toml: bool, as_json: bool) -> None:
    """List the targets, or one target; NAME may be a file, as in `--target my.toml`."""
    if as_toml:
        if name is None:
            raise UsageError("`--toml` needs the name of a target", hint="for example `ttac targets jetson --toml`")
        terminal.data(targets.source(name).rstrip())
        return
    if name is None:
        every = [targets.find(known) for known in targets.names()]
        if as_json:
            terminal.json([asdict(target) for target in every])
        else:
            columns = ("target", "device", "runs on", "memory>", "batch>", "opset>", "engine")
            terminal.table(columns, [_row(target) for target in every])
        return
    target = targets.find(name)
    if as_json:
        terminal.json(asdict(target))
    else:
        terminal.facts(_facts(target))


def _row(target: Target) -> tuple[object, ...]:
    engine = f"{target.engine} {target.engine_versions}".strip()
    return (
        target.name,
        target.title,
        target.runs_on.removeprefix("the "),
        format_size(target.memory),
        target.batch,
        target.opset,
        engine,
    )


def _facts(target: Target) -> dict[str, object]:
    facts: dict[str, object] = {
        "target": target.name,
        "device": target.title,
        "runs on": target.runs_on,
        "engine": f"{target.engine} {target.engine_versions}".strip(),
        "limits": f"opset {target.opset}, IR version {target.ir_version}",
        "memory": format_size(target.memory),
        "batch": target.batch,
        "threads": target.threads or "as the engine chooses",
        "kernels": ", ".join(target.kernels) or "standard ONNX only",
        "python": target.python or "any",
    }
    if target.denied:
        facts["denied"] = "; ".join(f"{version}: {reason}" for version, reason in target.denied.items())
    if target.notes:
        facts["notes"] = "\n".join(target.notes)
    return facts


def _method(method: Method) -> dict[str, Any]:
    options = [{**asdict(option), "choices": list(option.choices)} for option in method.options]
    named = {"name": method.name, "title": method.title, "paper": method.paper, "needs": method.needs}
    return {**named, "trains": method.trains, "loss": getattr(method.loss, "__name__", method.loss), "options": options}


SHELLS = ("bash", "zsh", "fish")


@click.command("completion", context_settings=CONTEXT, short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@verbose
@terminal
@click.pass_context
def completion(ctx: click.Context, terminal: Terminal, shell: str) -> None:
    """Print the script that completes commands and options of ttac in SHELL.

    For bash: `ttac completion bash >> ~/.bashrc`; for zsh likewise with `~/.zshrc`; for fish into
    `~/.config/fish/completions/ttac.fish`.
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the three shells"
    terminal.data(kind(ctx.find_root().command, {}, "ttac", "_TTAC_COMPLETE").source())
