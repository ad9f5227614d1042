"""The folder of an evaluation: bundles, samples and results, each of which appears whole or not at all.

run.json            what made the folder
bundles/            compiled bundles
data/               arrays of samples, corrupted ones too
cells/KEY.json      the result of a cell, under the key of its description
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ttac.errors import UsageError

FORMAT = "ttac-evaluation-1"
HOLDS = {"key", "cell", "parts", "trace", "memory"}
"""What every result has."""


class Folder:
    """The folder at `path`, made if there is none; raises UsageError when it is something else already."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells, self.data, self.bundles = path / "cells", path / "data", path / "bundles"
        self._check()
        for folder in (self.cells, self.data, self.bundles):
            folder.mkdir(parents=True, exist_ok=True)
        mark = path / "run.json"
        if not mark.exists():
            self._land(mark, "w", lambda file: file.write(json.dumps({"format": FORMAT}) + "\n"))

    def _check(self) -> None:
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        try:
            known = json.loads((self.path / "run.json").read_text(encoding="utf-8")).get("format") == FORMAT
        except (OSError, ValueError, AttributeError):
            known = False
        if not known:
            what = "the folder exists and is no evaluation's"
            raise UsageError(what, where=f"`{self.path}`", hint="give another folder with `-o`")

    def read(self, key: str) -> dict[str, Any] | None:
        """The result of that key; None where there is none, or where what is there is no result."""
        try:
            result = json.loads((self.cells / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(result, dict) and HOLDS <= set(result) and result["key"] == key
        return result if whole else None

    def keep(self, result: Mapping[str, Any]) -> None:
        """Land a result; one that is there already stays as it is."""
        path = self.cells / f"{result['key']}.json"
        if self.read(str(result["key"])) is None:
            self._land(path, "w", lambda file: json.dump(result, file, allow_nan=False))

    def array(self, name: str) -> Path:
        """Where the array of that name lies, or will."""
        return self.data / f"{name}.npy"

    def keep_array(self, name: str, array: np.ndarray) -> Path:
        """Land an array; returns its path."""
        path = self.array(name)
        self._land(path, "wb", lambda file: np.save(file, array, allow_pickle=False))
        return path

    def _land(self, path: Path, mode: str, write: Callable[[IO[Any]], object]) -> None:
        """Write beside `path` and rename, so that a reader sees the whole file or none."""
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            with partial.open(mode, encoding=None if "b" in mode else "utf-8") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
