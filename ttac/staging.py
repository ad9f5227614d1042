"""The folder in which a bundle is written, verified and measured before it moves to its place."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ttac.errors import UsageError
from ttac.options import CompileOptions


@contextmanager
def staging(options: CompileOptions) -> Iterator[Path]:
    """An empty folder on the file system of the output; a dry run gets a temporary folder.

    The folder and new parent folders of the output disappear at the end, except for parents of a finished bundle.
    Raises UsageError if nothing can be written there.
    """
    parent = options.output.absolute().parent
    missing = [] if options.dry_run else [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        for folder in reversed(missing):
            folder.mkdir()
        temporary = tempfile.TemporaryDirectory(prefix=".ttac-", dir=None if options.dry_run else parent)
    except OSError as error:
        _remove_empty(missing)
        where, hint = f"`{options.output}`", "choose another `-o`"
        raise UsageError(f"cannot write the bundle: {error.strerror}", where=where, hint=hint) from error
    try:
        with temporary as name:
            staged = Path(name) / "bundle"
            staged.mkdir()
            yield staged
    finally:
        _remove_empty(missing)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
