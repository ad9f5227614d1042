"""The folder in which a bundle or a model is written and verified before it moves to its place."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from safetensors import SafetensorError

from ttac.errors import UsageError
from ttac.options import CompileOptions
from ttac.runtime.replacement import locked, sweep_staged

STAGED = r"\.ttac-[a-z0-9_]{8}"
"""Name of a staging folder, as a regular expression."""


@contextmanager
def staging(options: CompileOptions) -> Iterator[Path]:
    """An empty folder on the file system of the output; a dry run gets a temporary folder.

    The folder and new parent folders of the output disappear at the end, except for parents of a finished bundle.
    Raises UsageError if nothing can be written there.
    """
    parent = options.output.absolute().parent
    missing = [] if options.dry_run else [folder for folder in (parent, *parent.parents) if not folder.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, missing)
        try:
            for folder in reversed(missing):
                folder.mkdir()
            staged = stack.enter_context(staged_folder(None if options.dry_run else parent)) / "bundle"
            staged.mkdir()
            yield staged
        except (OSError, SafetensorError) as error:
            if isinstance(error, SafetensorError) and "os error" not in str(error):
                raise
            place = getattr(error, "filename", None) or options.output
            problem = f"cannot write the bundle: {getattr(error, 'strerror', None) or error}"
            hint = "free space there, or choose another `-o`"
            raise UsageError(problem, where=f"`{place}`", hint=hint) from error


@contextmanager
def staged_folder(parent: Path | None) -> Iterator[Path]:
    """A new folder in `parent` (None: for temporary files) that no other writer deletes before this one ends.

    Folders of killed writers in `parent` disappear.
    """
    with ExitStack() as stack:
        with nullcontext() if parent is None else locked(parent):
            if parent is not None:
                sweep_staged(parent, STAGED)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".ttac-", dir=parent)))
            stack.enter_context(locked(folder))
        yield folder


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
