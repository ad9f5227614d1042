"""Options, and checks of their values, that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from ttac.cli.terminal import Terminal
from ttac.options import RULES, Parse, spelling, truth, whole_number

Command = TypeVar("Command", bound=Callable[..., Any])

Check = Callable[[click.Context, click.Parameter, Any], Any]
"""A click callback: returns the converted value, or raises UsageError."""

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Settings of every command, also of one that is called by itself."""
PATH = click.Path(path_type=Path)
SHORT = {"output": ("-o",)}
"""Further spellings of options of `ttac.compile`."""


def checked(parse: Parse) -> Check:
    """The callback that converts a value with `parse`; an option that is left out stays None."""

    def check(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        return None if value is None or value == () else parse(value, option_name(param))

    return check


def count(low: int = 1) -> Check:
    """The callback for a whole number that is at least `low`."""
    return checked(whole_number(low))


def option_name(param: click.Parameter) -> str:
    """The option's long name, in backticks."""
    names: Iterable[str] = (name for name in param.opts if name.startswith("--"))
    return f"`{next(iter(names), param.human_readable_name)}`"


MODEL = ("norms", "head", "input", "logits", "shape")
"""Options of `ttac.compile` that say how a model's file is read."""


def compile_options(*names: str) -> Callable[[Command], Command]:
    """Add the options `names` of `ttac.compile`, as `ttac.options.CompileOptions` declares them."""

    def add(command: Command) -> Command:
        for name in reversed(names):
            command = _compile_option(name)(command)
        return command

    return add


def _compile_option(name: str) -> Callable[[Command], Command]:
    rule = RULES[name]
    spellings = (*SHORT.get(name, ()), spelling(name), name)
    if rule.parse is truth:
        return click.option(*spellings, is_flag=True, help=rule.help)
    return click.option(
        *spellings,
        metavar=rule.metavar,
        help=rule.help,
        default=rule.default or None,
        show_default=bool(rule.default),
        multiple=rule.metavar == "KEY=VALUE",
        callback=checked(rule.parse),
    )


def verbose(command: Command) -> Command:
    """Add `-v/--verbose`, which the Terminal remembers."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(Terminal).verbose = True

    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        help="Say more; show tracebacks.",
    )(command)


def as_json(command: Command) -> Command:
    """Add `--json`, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(command)


terminal = click.make_pass_decorator(Terminal, ensure=True)
"""Pass the Terminal as the first argument."""
