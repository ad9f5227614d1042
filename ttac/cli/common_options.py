"""Options, and checks of their values, that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from ttac.cli.terminal import Terminal
from ttac.errors import UsageError
from ttac.options import RULES, Parse, spelling, truth, whole_number

Command = TypeVar("Command", bound=Callable[..., Any])

Check = Callable[[click.Context, click.Parameter, Any], Any]
"""A click callback: returns the converted value, or raises UsageError."""

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Settings of every command, also of one that is called by itself."""
PATH = click.Path(path_type=Path)
SHORT = {"output": ("-o",)}
"""Further spellings of options of `ttac.compile`."""
MODEL = ("norms", "head", "axis", "background", "input", "logits", "hold", "batch_axis", "shape")
"""Options of `ttac.compile` that say how a model's file is read."""
COMPILING = ("target", "calibration", "train", *MODEL, "pixels")
"""Options of `ttac eval` and `ttac bench` that go to `ttac.compile` unchanged."""


def checked(parse: Parse) -> Check:
    """Return a callback that converts a value with `parse`; an option that is left out stays None."""

    def check(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        return None if value is None or value == () else parse(value, option_name(param))

    return check


def count(low: int = 1) -> Check:
    """Return a callback for a whole number that is at least `low`."""
    return checked(whole_number(low))


def words(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of an option that may occur several times, each time with several words and commas."""
    return tuple(word.strip() for text in value for word in text.split(",") if word.strip())


def numbers(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[int, ...]:
    """Return the whole numbers of such an option; raises UsageError for any other word."""
    texts = words(ctx, param, value)
    for text in texts:
        if not text.isdecimal():
            hint = "give whole numbers with commas between them"
            raise UsageError(f"`{text}` does not fit", where=option_name(param), hint=hint)
    return tuple(map(int, texts))


def several(*names: str, default: str = "", check: Any = words, **more: Any) -> Callable[[Any], Any]:
    """Return an option that takes a list; `default` is written as on the command line."""
    if default:
        more |= {"default": (default,), "help": f"{more['help']}  [default: {default}]"}
    return click.option(*names, multiple=True, callback=check, **more)


def option_name(param: click.Parameter) -> str:
    """Return the option's long name in backticks."""
    names: Iterable[str] = (name for name in param.opts if name.startswith("--"))
    return f"`{next(iter(names), param.human_readable_name)}`"


def check_folders(*files: Path | None) -> None:
    """Raise UsageError for an output file whose folder does not exist."""
    for file in files:
        if file is not None and not file.resolve().parent.is_dir():
            raise UsageError("the folder does not exist", where=f"`{file}`", hint=f"`mkdir -p {file.parent}`")


def compile_options(*names: str) -> Callable[[Command], Command]:
    """Return a decorator that adds options of `ttac.compile`, as `ttac.options.CompileOptions` declares them."""

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
    """Add `-v/--verbose`, which sets the flag of the Terminal."""

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
"""Decorator that passes the Terminal as the first argument."""
