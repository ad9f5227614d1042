"""Folders on the way: one in which a bundle is written and verified, or one with the files of a packed bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from safetensors import SafetensorError

from ttac.errors import UsageError
from ttac.options import CompileOptions
from ttac.runtime.archive import is_archive
from ttac.runtime.bundle import open_bundle
from ttac.runtime.replacement import locked, read_unreplaced, sweep_staged

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


@contextmanager
def as_folder(path: Path) -> Iterator[Path]:
    """The path, or for a bundle in one file a temporary folder of the same name with its files.

    Raises the errors of `open_bundle` for a bundle in one file.
    """
    if not is_archive(path):
        yield path
        return
    opened = read_unreplaced(path, lambda: open_bundle(path))
    with tempfile.TemporaryDirectory(prefix="ttac-") as parent:
        folder = Path(parent) / path.name
        folder.mkdir()
        for name in opened.manifest.files:
            (folder / name).write_bytes(opened.files.content(name).tobytes())
        yield folder
