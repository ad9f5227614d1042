"""The folder of an evaluation.  Each bundle, array and result in it appears whole or not at all.

run.json            format of the folder
bundles/            compiled bundles
data/               arrays of samples and of corrupted samples
cells/KEY.json      result of a cell, under the key of its description
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np

from ttac.errors import UsageError

FORMAT = "ttac-evaluation-1"
KEYS = {"key", "cell", "figure", "parts", "trace", "memory"}
"""Keys of every result."""


@contextmanager
def kept_or_temporary(path: str | Path | None) -> Iterator[ResultFolder]:
    """Open the folder at `path`; for None, a temporary folder that disappears at the end."""
    if path is not None:
        yield ResultFolder(Path(path).absolute())
        return
    with TemporaryDirectory(prefix="ttac-eval-") as folder:
        yield ResultFolder(Path(folder))


class ResultFolder:
    """The folder at `path`, created if it does not exist; raises UsageError for a folder with other contents."""

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
            problem = "the folder exists and is no evaluation's"
            raise UsageError(problem, where=f"`{self.path}`", hint="give another folder with `-o`")

    def read(self, key: str) -> dict[str, Any] | None:
        """Return the result of that key; None where there is no file, or a file that is no result."""
        try:
            result = json.loads((self.cells / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(result, dict) and KEYS <= set(result) and result["key"] == key
        return result if whole else None

    def keep(self, result: Mapping[str, Any]) -> None:
        """Write a result; a result with the same key that exists already stays unchanged."""
        path = self.cells / f"{result['key']}.json"
        if self.read(str(result["key"])) is None:
            self._land(path, "w", lambda file: json.dump(result, file, allow_nan=False))

    def array(self, name: str) -> Path:
        """Return the path of the array of that name, whether it exists or not."""
        return self.data / f"{name}.npy"

    def keep_array(self, name: str, array: np.ndarray) -> Path:
        """Write an array and return its path."""
        path = self.array(name)
        self._land(path, "wb", lambda file: np.save(file, array, allow_pickle=False))
        return path

    def archive(self, name: str) -> Path:
        """Return the path of the arrays of that name, whether they exist or not."""
        return self.data / f"{name}.npz"

    def keep_archive(self, name: str, arrays: Mapping[str, np.ndarray]) -> Path:
        """Write arrays by their names and return the path."""
        path = self.archive(name)
        self._land(path, "wb", lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
        return path

    def _land(self, path: Path, mode: str, write: Callable[[IO[Any]], object]) -> None:
        """Write a neighbour of `path` and rename it, so that a reader sees the whole file or none."""
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            with partial.open(mode, encoding=None if "b" in mode else "utf-8") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
