"""Sizes as people write and read them: bytes as `64MiB`, `48 MB`, `2 GiB`, and shapes of samples as `3x224x224`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ttac.errors import UsageError

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(text: str, where: str = "") -> int:
    """Return the number of bytes that `text` names: a bare number counts bytes, `MB` is 10^6, `MiB` is 2^20.

    Raises UsageError for any other text and for less than one byte; `where` names the place in the error.
    """
    match = PATTERN.fullmatch(text)
    if match is None or match[2].lower() not in UNITS:
        raise UsageError(f"`{text}` is not a size", where=where, hint="write it as `64MiB`, `48MB` or `2 GiB`")
    size = round(float(match[1]) * UNITS[match[2].lower()])
    if size < 1:
        raise UsageError(f"`{text}` is less than one byte", where=where, hint="write it as `64MiB`, `48MB` or `2 GiB`")
    return size


def format_size(size: float) -> str:
    """Return `size` in bytes as text with three significant digits: `512 B`, `1.50 KiB`, `4.19 MiB`."""
    scaled, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if abs(scaled) < 1023.5:
            break
        scaled, unit = scaled / 1024, larger
    digits = 0 if unit == "B" or abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{digits}f} {unit}"


def sample_shape(value: Any, where: str) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    """Parser of the shape of one sample: `3x224x224`, or a sequence of whole numbers.

    Shapes of several inputs are a mapping by their names, or a text such as `image=3x224x224,mask=16`.
    """
    if isinstance(value, str) and "=" in value:
        parts = [part.strip().rpartition("=") for part in value.split(",")]
        value = {name: sizes for name, _, sizes in parts}
    if isinstance(value, Mapping):
        return {str(name): _sizes(each, where) for name, each in value.items()}
    return _sizes(value, where)


def _sizes(value: Any, where: str) -> tuple[int, ...]:
    parts = value.lower().split("x") if isinstance(value, str) else [str(part) for part in value]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        hint = "write one sample's sizes without the batch, `--shape 3x224x224`"
        raise UsageError(f"`{value}` is not a shape", where=where, hint=hint)
    return tuple(int(part) for part in parts)
