"""The form that an earlier step confirmed on this machine: remembered in the bundle's folder, or in memory.

The key holds the manifest, the engine's version, the operator library and the processor, because a form that fits one
of them may not fit another.  A damaged file, or a file with another key, counts as no file.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ttac.errors import UsageError
from ttac.runtime.engine_import import engine
from ttac.runtime.whole_file import write_whole

FILE = "form-cache.json"
LARGEST = 1 << 16
"""Most bytes of the file that are read."""
FACTS = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU implementer", "CPU part", "Features")
"""Lines of Linux's `/proc/cpuinfo` that tell processors apart."""

_memory: dict[tuple[Path, str], tuple[str, str]] = {}


def cache_key(raw: Mapping[str, Any], library: str = "") -> str:
    """Return the SHA-256 over the manifest `raw`, the engine's version, the processor and the identity of `library`."""
    facts = [raw, str(engine().__version__), library, platform.system(), platform.machine(), _processor()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def recall(folder: Path, key: str) -> tuple[str, str] | None:
    """Return the name of the confirmed form and the reason against the others; None if nothing is remembered."""
    place = folder.resolve()
    if (place, key) in _memory:
        return _memory[place, key]
    try:
        with (place / FILE).open("rb") as file:
            entry = json.loads(file.read(LARGEST))
        found = entry["key"], entry["form"], entry["reason"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if found[0] != key or not all(isinstance(text, str) for text in found):
        return None
    return found[1], found[2]


def remember(folder: Path, key: str, form: str, reason: str) -> str:
    """Remember the form for later processes; return the reason if only this process can remember it, else nothing.

    A bundle in one file stays unchanged: only this process remembers, without a reason.
    """
    place = folder.resolve()
    _memory[place, key] = form, reason
    if place.is_file():
        return ""
    path = place / FILE
    if path.is_symlink():
        return "a symbolic link has the name of the file"
    try:
        write_whole(path, [json.dumps({"key": key, "form": form, "reason": reason}).encode()])
    except UsageError as error:
        return error.problem
    return ""


def _processor() -> list[str]:
    """The processor's model and its instruction sets, as far as the system tells them."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0].splitlines()
        return [line for line in lines if line.split(":")[0].strip() in FACTS]
    return [platform.processor()]
