"""`--config FILE` and `--save-config FILE`: the options of `ttac compile` in a TOML file.

The keys are the names of the options, which are also the arguments of `ttac.compile`.  The command line has priority.
Paths count from the working directory, as on the command line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ttac.cli.common_options import PATH
from ttac.errors import UsageError
from ttac.options import RULES
from ttac.runtime.whole_file import new_file
from ttac.suggest import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Command = TypeVar("Command", bound=Callable[..., Any])

TABLES = tuple(name for name, rule in RULES.items() if rule.metavar == "KEY=VALUE")
"""Options that are tables of names and values."""


def config_options(command: Command) -> Command:
    """Add `--config`, which fills the options that the command line leaves out, and `--save-config`."""
    read = click.option(
        "--config",
        metavar="FILE",
        type=PATH,
        is_eager=True,
        expose_value=False,
        callback=_read,
        help="A TOML file with options by name; the command line has priority.",
    )
    write = click.option(
        "--save-config", metavar="FILE", type=PATH, help="Write the options of this compile to a TOML file."
    )
    return read(write(command))


def write_config(ctx: click.Context, file: Path) -> None:
    """Write every option that is not a default, so that `--config FILE` gives the same compile."""
    given = {
        name: ctx.params[name]
        for name in RULES
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT and ctx.params.get(name) is not None
    }
    single = [f"{name} = {_toml(value)}" for name, value in given.items() if not isinstance(value, Mapping)]
    for name, value in given.items():
        if isinstance(value, Mapping):
            single += ["", f"[{name}]", *(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items())]
    with new_file(file) as stream:
        stream.write(("\n".join(single) + "\n").encode())


def _read(ctx: click.Context, param: click.Parameter, file: Path | None) -> None:
    if file is None:
        return
    where = f"`{file}`"
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the options: {error.strerror}", where=where, hint="name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the options are not TOML: {error}", where=where, hint='as in `method = "tent"`') from error
    options = {"settings" if key == "set" else key.replace("-", "_"): value for key, value in found.items()}
    for key in options:
        if key not in RULES:
            raise UsageError(f"there is no option `{key}`", where=where, hint=did_you_mean(key, list(RULES)))
    ctx.default_map = {**(ctx.default_map or {}), **{key: _argument(key, value) for key, value in options.items()}}


def _argument(key: str, value: Any) -> Any:
    """The value as the command line gives it: a table as texts `name=value`, sizes as `3x8x8`."""
    if key in TABLES and isinstance(value, Mapping):
        return [f"{name}={_text(inner)}" for name, inner in value.items()]
    if key in TABLES:
        return value if isinstance(value, list) else [value]
    if isinstance(value, list):
        return "x".join(map(str, value))
    if isinstance(value, Mapping):
        return ",".join(f"{name}={_argument(key, inner)}" for name, inner in value.items())
    return value if isinstance(value, bool) else str(value)


def _text(value: Any) -> str:
    """The value of a setting on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _toml(value: Any) -> str:
    """The value in TOML, where texts, numbers, truth values and lists look as in JSON."""
    if isinstance(value, (Path, str)):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, default=str)
