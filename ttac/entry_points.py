"""Methods and targets of other installed packages: the entry points of the groups `ttac.methods` and `ttac.targets`."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from functools import lru_cache
from importlib import metadata
from typing import Any

from ttac.errors import UsageError

METHODS, TARGETS = "ttac.methods", "ttac.targets"
"""Names of the groups."""


def installed(group: str, built_in: Collection[str]) -> dict[str, metadata.EntryPoint]:
    """The entry points of `group` by name; raises UsageError for a name that is taken, by ttac or by two packages."""
    points: dict[str, metadata.EntryPoint] = {}
    for point in _declared(group, tuple((folder, _changed(folder)) for folder in sys.path)):
        other = points.setdefault(point.name, point)
        if point.name in built_in or other.value != point.value:
            owner = "ttac" if point.name in built_in else package_of(other)
            raise UsageError(
                f"the name `{point.name}` in `{group}` is taken by {owner}",
                where=f"entry point `{point.value}` of {package_of(point)}",
                hint=f"uninstall {package_of(point)}, or rename its entry point",
            )
    return points


@lru_cache(maxsize=8)
def _declared(group: str, folders: tuple[tuple[str, int], ...]) -> tuple[metadata.EntryPoint, ...]:
    """The entry points of `group` in the `folders`, which have their times of change.

    A search reads the metadata of all installed packages, and `ttac inspect` asks more than a hundred times.
    """
    return tuple(metadata.entry_points(group=group))


def _changed(folder: str) -> int:
    """The time of the last change of a folder, ns; 0 where there is none."""
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def load(point: metadata.EntryPoint, kind: type[Any]) -> Any:
    """The object of an entry point; raises UsageError if it cannot be imported or is no `kind`."""
    where = f"entry point `{point.value}` of {package_of(point)}"
    try:
        value = point.load()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"`{point.name}` cannot be imported: {error}", where=where, hint="reinstall it") from error
    if not isinstance(value, kind):
        hint = f"the entry point names a `{kind.__name__}`"
        raise UsageError(f"`{point.name}` is a `{type(value).__name__}`", where=where, hint=hint)
    return value


def package_of(point: metadata.EntryPoint) -> str:
    """The package that declares the entry point, for a message."""
    return f"package `{point.dist.name}`" if point.dist is not None else "an installed package"
