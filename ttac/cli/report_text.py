"""Reports as text: a report in JSON values becomes names with values, tables and lists, in its own order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from ttac.cli.terminal import Terminal
from ttac.sizes import format_size

SIZES = ("bytes", "memory", "peak", "loaded", "weights", "state", "residuals", "dense", "workspace", "budget", "cache")
"""Names whose whole numbers are sizes in bytes; so are the numbers of a name that ends in `_bytes`."""


def render(terminal: Terminal, report: Mapping[str, Any]) -> None:
    """Print `report` on stdout: single values first, then one section per mapping or list that is not empty."""
    single = {title(key): readable(key, value) for key, value in report.items() if not _nested(value)}
    if single:
        terminal.facts(single)
    first = not single
    for key, value in report.items():
        if not _nested(value) or not value:
            continue
        if not first:
            terminal.show()
        first = False
        section(terminal, key, value)


def section(terminal: Terminal, key: str, value: Any) -> None:
    """Print one titled part of a report: a mapping as facts, a list of mappings as a table, any other list as lines."""
    if isinstance(value, Mapping):
        terminal.show(Text(title(key), style="bold"))
        terminal.facts({f"  {title(name)}": readable(name, inner) for name, inner in value.items()})
    elif isinstance(value[0], Mapping):
        columns = list(dict.fromkeys(name for row in value for name in row))
        heads = [title(name) + (">" if _is_number(value[0].get(name)) else "") for name in columns]
        rows = [[readable(name, row.get(name)) for name in columns] for row in value]
        terminal.table(heads, rows, title=title(key))
    else:
        terminal.show(Text(title(key), style="bold"))
        for line in value:
            terminal.data(f"  {line}")


def readable(key: str, value: Any) -> str:
    """Return a value as a person reads it: sizes with units, yes and no, lists with commas."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and (key in SIZES or key.endswith("_bytes")):
        return format_size(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {readable(name, inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(readable(key, inner) for inner in value) or "none"
    return str(value)


def title(key: str) -> str:
    """Return `near_misses` as `near misses`; a suffix `_bytes` disappears."""
    return key.removesuffix("_bytes").replace("_", " ")


def _nested(value: Any) -> bool:
    """Whether a value gets a section: a mapping, or a list of mappings or of long texts."""
    if isinstance(value, Mapping):
        return True
    if not isinstance(value, list):
        return False
    return any(isinstance(item, Mapping) or (isinstance(item, str) and " " in item) for item in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
