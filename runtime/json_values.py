"""Values of decoded JSON: each check returns the value with its type, or refuses the manifest and names the place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from ttac.errors import VerificationError

MANIFEST = "manifest.json"
LARGEST_COUNT = 2**31 - 1
HINT = "copy the bundle again from where it was compiled, or recompile it"

_SHA256 = re.compile(r"[0-9a-f]{64}")


def refuse(where: str, problem: str) -> NoReturn:
    """Raise the VerificationError for the `problem` at `where` in the manifest."""
    raise VerificationError(f"the manifest is not valid: `{where}` {problem}", where=f"`{MANIFEST}`", hint=HINT)


def an_object(
    value: Any, where: str, *, only: tuple[str, ...] = (), also: tuple[str, ...] = (), needs: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`value` as an object with all keys of `only` and `needs`; with `only`, no keys beyond `only` and `also`."""
    if not isinstance(value, dict):
        refuse(where, "is not an object")
    for key in (*only, *needs):
        if key not in value:
            refuse(where, f"lacks `{key}`")
    odd = [key for key in value if key not in (*only, *also)] if only else []
    if odd:
        refuse(where, f"has the unknown key `{odd[0]}`")
    return value


def a_list(value: Any, where: str) -> list[Any]:
    """`value` as a list."""
    if not isinstance(value, list):
        refuse(where, "is not a list")
    return value


def a_name(value: Any, where: str) -> str:
    """`value` as a string of printable characters that is not empty."""
    if not isinstance(value, str) or not value or not value.isprintable():
        refuse(where, "is not a name")
    return value


def a_count(value: Any, where: str, *, low: int, high: int = LARGEST_COUNT) -> int:
    """`value` as an int from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        refuse(where, f"is {repr(value)[:40]}, not a whole number of at least {low}")
    if value > high:
        refuse(where, f"is {repr(value)[:40]}, more than {high}")
    return value


def a_digest(value: Any, where: str) -> str:
    """`value` as a SHA-256 in lower-case hexadecimal."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        refuse(where, "is not a SHA-256 in lower-case hexadecimal")
    return value


def a_file(value: Any, where: str) -> str:
    """`value` as the name of a file directly inside the folder."""
    if not isinstance(value, str) or not is_plain_name(value):
        refuse(where, f"names {value!r}, which is not a plain file name inside the folder")
    return value


def is_plain_name(name: object) -> bool:
    """Whether `name` can only mean a file directly inside the bundle's folder, on every system."""
    return (
        isinstance(name, str) and name not in ("", ".", "..") and name.isprintable() and not re.search(r"[/\\:]", name)
    )


def check_distinct(names: Iterable[str], where: str) -> None:
    """Refuse a name that occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            refuse(where, f"has `{name}` twice")
        seen.add(name)


def decode_object(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in `data`; raises VerificationError for invalid, ambiguous or non-standard JSON."""
    try:
        decoded = json.loads(data.decode("utf-8"), object_pairs_hook=distinct_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise VerificationError(f"the file is not valid JSON: {error}", where=where, hint=HINT) from error
    if not isinstance(decoded, dict):
        raise VerificationError("the file is not a JSON object", where=where, hint=HINT)
    return decoded


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The JSON object of the pairs; raises ValueError for a key that occurs twice."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("an object has the same key twice")
    return entries


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
