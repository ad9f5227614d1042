"""Options, and checks of their values, that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from ttac.cli.terminal import Terminal
from ttac.errors import UsageError
from ttac.samples.pixels import resolve_pixels
from ttac.sizes import parse_size
from ttac.spec import HEADS
from ttac.suggest import did_you_mean

Command = TypeVar("Command", bound=Callable[..., Any])

Check = Callable[[click.Context, click.Parameter, Any], Any]
"""A click callback: gives the value back, converted, or raises UsageError."""

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Of every command, also one that is called by itself."""
PATH = click.Path(path_type=Path)


def one_of(*words: str) -> Check:
    """A value that is one of a few words; another one is answered with the nearest."""

    def check(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if value is not None and value not in words:
            raise UsageError(f"`{value}` is no choice", where=option_name(param), hint=did_you_mean(value, words))
        return value

    return check


def count(low: int = 1) -> Check:
    """A value that is a whole number, at least `low`."""

    def check(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        if value is not None and (not str(value).isdecimal() or int(value) < low):
            hint = f"give a whole number, at least {low}"
            raise UsageError(f"`{value}` does not fit", where=option_name(param), hint=hint)
        return value if value is None else int(value)

    return check


def size(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """A value that is a size, such as `64MiB`; becomes bytes."""
    return value if value is None else parse_size(value, option_name(param))


def shape(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """A value that is the shape of one sample, such as `3x224x224`; becomes a tuple."""
    if value is None:
        return None
    parts = value.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        hint = "write one sample's sizes without the batch, `--shape 3x224x224`"
        raise UsageError(f"`{value}` is not a shape", where=option_name(param), hint=hint)
    return tuple(int(part) for part in parts)


def option_name(param: click.Parameter) -> str:
    """The option's long name, in backticks."""
    names: Iterable[str] = (name for name in param.opts if name.startswith("--"))
    return f"`{next(iter(names), param.human_readable_name)}`"


def model(command: Command) -> Command:
    """Add how a model's file is read: `--norms`, `--head`, `--input` (as `input_name`), `--logits`, `--shape`."""
    why = "Insert norms where an exporter folded them: if the file has none (auto), never, or after every Conv."
    read = "What the output predicts: a class a sample, yes or no, or a class a pixel; told from the file (auto)."
    for option in (
        click.option(
            "--shape", metavar="CxHxW", callback=shape, help="One sample's shape, where the file leaves it open."
        ),
        click.option("--logits", metavar="NAME", help="The graph output that holds logits."),
        click.option("--input", "input_name", metavar="NAME", help="The graph input that takes samples."),
        click.option("--head", default="auto", show_default=True, help=read, **_words("auto", *HEADS)),
        click.option("--norms", default="auto", show_default=True, help=why, **_words("auto", "keep", "insert")),
    ):
        command = option(command)
    return command


def pixels(command: Command) -> Command:
    """Add `--pixels`, how images become the model's input: a mapping, None where nothing is said."""
    what = "How images become the model's input: `imagenet`, or `mean=`, `std=`, `range=`, `layout=`; several times."

    def resolved(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        return resolve_pixels(value)

    return click.option("--pixels", metavar="KEY=VALUE", multiple=True, callback=resolved, help=what)(command)


def _words(*words: str) -> dict[str, Any]:
    return {"metavar": "|".join(words), "callback": one_of(*words)}


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
