"""Writing one file so that it is new and whole, or unchanged, whenever the process is killed."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ttac.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREVIOUS = ".previous"
"""Suffix of the file that holds the content before the last write."""


def write_whole(path: str | Path, chunks: Iterable[bytes | memoryview], *, keep_previous: bool = False) -> None:
    """Replace the file `path` by the chunks; see `new_file`."""
    with new_file(path, keep_previous=keep_previous) as file:
        file.writelines(chunks)


@contextmanager
def new_file(path: str | Path, *, keep_previous: bool = False) -> Iterator[BinaryIO]:
    """An empty file that replaces the file `path` at the end of the block.

    With `keep_previous`, the old content stays as `<path>.previous`.  The new file lies in the same folder; it is
    synchronised and renamed.  The process's umask decides the mode.  The call also removes the new files of killed
    writers to the same path.  A device or a pipe, such as `/dev/null`, is written to and not replaced.

    Raises UsageError if the file cannot be written; its old content is unchanged.
    """
    try:
        given, target = Path(path), Path(os.path.realpath(path))
        # Of `/dev/stdout` before a pipe, only the link opens: it names no path.
        special = given.exists() and not given.is_file() and not given.is_dir()
        with given.open("wb") if special else _replacement(target, keep_previous) as file:
            yield file
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot write the file: {getattr(error, 'strerror', None) or error}",
            where=f"`{path}`",
            hint="give a path in a writable folder with free space, and a shorter name",
        ) from error


@contextmanager
def _replacement(target: Path, keep_previous: bool) -> Iterator[BinaryIO]:
    """A new file beside the target that takes the target's name at the end of the block."""
    _sweep(target)
    file, temporary = _create(target)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name == "nt":
                file.close()  # Windows renames no open file
            if keep_previous:
                _keep(target)
            temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink()
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in the folder durable; systems that cannot open a folder need no such call."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _create(target: Path) -> tuple[BinaryIO, Path]:
    """A new locked file beside the target, and its path; another process may sweep it before the lock."""
    while True:
        temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}.tmp")
        file = temporary.open("xb")
        lock(file)
        if os.fstat(file.fileno()).st_nlink:
            return file, temporary
        file.close()


def _sweep(target: Path) -> None:
    """Remove new files beside the target whose writer holds no lock any more."""
    for leftover in target.parent.glob(f"{_prefix(target)}*.tmp"):
        with suppress(OSError), leftover.open("rb+") as file:
            if not leftover.is_symlink() and lock(file, wait=False):
                leftover.unlink()


def _prefix(target: Path) -> str:
    return f".ttac-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]}-"


def lock(file: BinaryIO | int, *, wait: bool = True) -> bool:
    """Lock the file or descriptor until it is closed; returns False if another holder exists or locks are missing."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, AttributeError):
        return False
    return True


def _keep(target: Path) -> None:
    """Give the target's content the name `<target>.previous`; the target keeps its name meanwhile."""
    if not target.is_file():
        return
    second = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}.tmp")
    try:
        try:
            os.link(target, second)
        except OSError:  # a file system without hard links
            shutil.copyfile(target, second)
        second.replace(target.with_name(target.name + PREVIOUS))
    finally:
        with suppress(OSError):  # a rename between two links of one file leaves both
            second.unlink()
