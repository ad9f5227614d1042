"""Devices as data: the tables of `targets.toml`, of installed packages, or of a user's file, as `Target` values.

A package elsewhere adds a target by an entry point of the group `ttac.targets` that leads to the target's table, a
mapping with the keys of `SCHEMA`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from importlib import resources
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from ttac import entry_points
from ttac.errors import UsageError
from ttac.runtime.providers import NAMES
from ttac.sizes import parse_size
from ttac.spec import Target
from ttac.suggest import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENGINES = ("onnxruntime",)
LOWEST_OPSET, LOWEST_IR_VERSION = 18, 8


def names() -> list[str]:
    """The names of the built-in targets, in the order of the file, then those of installed packages."""
    return [*_builtin(), *_installed()]


def find(name: str) -> Target:
    """The built-in or installed target called `name`, or the target that a `.toml` file describes.

    Raises UsageError when there is no such target or file, or when the file breaks the schema.
    """
    if name.endswith(".toml"):
        return load(Path(name))
    if name not in names():
        hint = did_you_mean(name, names()) + " (`ttac targets` lists them; `--target FILE.toml` describes another)"
        raise UsageError(f"there is no target `{name}`", hint=hint)
    return _builtin()[name] if name in _builtin() else from_table(name, _table(name), f"installed target `{name}`")


def load(path: Path) -> Target:
    """The target of a file with one table; raises UsageError when it cannot be read or breaks the schema."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the target file: {error.strerror}", where=f"`{path}`") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the target file is not TOML: {error}", where=f"`{path}`") from error
    if len(tables) != 1 or not isinstance(next(iter(tables.values())), dict):
        raise UsageError(
            "a target file holds exactly one table, named after the target",
            where=f"`{path}`",
            hint="begin it with `[my-board]`; `ttac targets raspberry-pi-5 --toml` prints one to start from",
        )
    name, table = next(iter(tables.items()))
    return from_table(name, table, where=f"`{path}`, table `[{name}]`")


def from_table(name: str, table: Mapping[str, Any], where: str) -> Target:
    """The target a TOML table describes; raises UsageError at an unknown or missing key or a value of a wrong type."""
    for key in table:
        if key not in SCHEMA:
            raise UsageError(f"a target has no key `{key}`", where=where, hint=did_you_mean(key, SCHEMA))
    missing = [key for key in REQUIRED if key not in table]
    if missing:
        listed = ", ".join(f"`{key}`" for key in missing)
        raise UsageError(f"the target lacks {listed}", where=where, hint=f"`{missing[0]}` is {SCHEMA[missing[0]][1]}")
    values = {key: _checked(key, value, where) for key, value in table.items()}
    return Target(name=name, **values)


def source(name: str) -> str:
    """The TOML text of a built-in or installed target's table, for the user's own file."""
    find(name)
    if name not in _builtin():
        return "".join([f"[{name}]\n", *(f"{key} = {_as_toml(value)}\n" for key, value in _table(name).items())])
    _, _, rest = _text_of_tables().partition(f"[{name}]\n")
    table, _, _ = rest.partition("\n[")
    return f"[{name}]\n{table.rstrip()}\n"


def admits(specifier: str, version: str) -> bool:
    """Whether `version` satisfies a specifier like `>=1.18,<2`; the empty one admits everything."""
    return SpecifierSet(specifier).contains(version, prereleases=True)


def _checked(key: str, value: Any, where: str) -> Any:
    convert, meaning = SCHEMA[key]
    try:
        return convert(value)
    except (ValueError, UsageError) as error:
        raise UsageError(f"`{key} = {value!r}` does not fit", where=where, hint=f"`{key}` is {meaning}") from error


@cache
def _builtin() -> dict[str, Target]:
    tables = tomllib.loads(_text_of_tables())
    return {name: from_table(name, table, f"table `[{name}]`") for name, table in tables.items()}


def _installed() -> dict[str, EntryPoint]:
    return entry_points.installed(entry_points.TARGETS, list(_builtin()))


def _table(name: str) -> Mapping[str, Any]:
    """The table of the target `name` of an installed package."""
    table: Mapping[str, Any] = entry_points.load(_installed()[name], dict)
    return table


def _as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_as_toml(entry)}" for key, entry in value.items()) + " }"
    return json.dumps(value)


def _text_of_tables() -> str:
    return resources.files("ttac.targets").joinpath("targets.toml").read_text(encoding="utf-8")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _engine(value: Any) -> str:
    if value not in ENGINES:
        raise ValueError
    return str(value)


def _at_least(low: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError
        return value

    return convert


def _memory(value: Any) -> int:
    return parse_size(value) if isinstance(value, str) else _at_least(1)(value)


def _specifier(value: Any) -> str:
    try:
        SpecifierSet(_text(value))
    except InvalidSpecifier as error:
        raise ValueError from error
    return str(value)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError
    return tuple(_text(item) for item in value)


def _providers(value: Any) -> tuple[str, ...]:
    if not set(names := _texts(value)) <= set(NAMES):
        raise ValueError
    return names


def _word(*words: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return convert


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _reasons(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError
    return {version: _text(reason) for version, reason in value.items()}


SCHEMA: dict[str, tuple[Callable[[Any], Any], str]] = {
    "title": (_text, "one line about the device"),
    "engine": (_engine, "one of " + ", ".join(f"`{engine}`" for engine in ENGINES)),
    "opset": (_at_least(LOWEST_OPSET), f"a whole number, at least {LOWEST_OPSET}"),
    "ir_version": (_at_least(LOWEST_IR_VERSION), f"a whole number, at least {LOWEST_IR_VERSION}"),
    "memory": (_memory, "a size like `2 GiB`, or a number of bytes"),
    "batch": (_at_least(1), "a whole number, at least 1"),
    "threads": (_at_least(0), "a whole number; 0 leaves it to the engine"),
    "providers": (_providers, 'a list of execution providers, such as ["cuda", "cpu"]; known: ' + ", ".join(NAMES)),
    "kernels": (_texts, "a list of texts"),
    "python": (_specifier, "a version range like `>=3.10,<3.13`"),
    "engine_versions": (_specifier, "a version range like `>=1.18,<2`"),
    "denied": (_reasons, "a table from version to the reason"),
    "notes": (_texts, "a list of texts"),
    "int8_form": (_word("qdq"), "`qdq`"),
    "int8_activations": (_word("uint8", "int8"), "`uint8` or `int8`"),
    "int8_per_channel": (_flag, "true or false"),
    "int8_reduce_range": (_flag, "true or false"),
    "int8_operators": (_texts, "a list of ONNX operators"),
}
"""Key of a target's table -> converter that checks the value, and the meaning of the key."""

REQUIRED = [
    entry.name
    for entry in fields(Target)
    if entry.name != "name" and entry.default is MISSING and entry.default_factory is MISSING
]
