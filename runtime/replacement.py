"""Replace a bundle so that readers meet the old one or the new one, whole, and repair a replacement that was killed.

Linux exchanges two folders in one call.  Elsewhere two renames follow each other under a lock of the parent folder.
The next load or compile gives the old bundle its name back if a writer died between the renames.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ttac.errors import TtacError, VerificationError
from ttac.runtime.json_values import HINT, MANIFEST
from ttac.runtime.whole_file import lock, sync_folder

READS = 100
"""Most reads of a bundle that is replaced again and again."""

T = TypeVar("T")


def read_unreplaced(folder: Path, read: Callable[[], T]) -> T:
    """Return the result of `read` on one version of the bundle; a read that meets a replacement happens again.

    Raises the errors of `read`, and VerificationError for a file that cannot be read or endless replacements.
    """
    for _ in range(READS):
        repair(folder)
        before = _version(folder)
        try:
            result = read()
        except (TtacError, OSError) as error:
            if _version(folder) != before:
                continue
            if isinstance(error, TtacError):
                raise
            problem = f"a file of the bundle cannot be read: {error.strerror or error}"
            raise VerificationError(problem, where=f"`{error.filename or folder}`", hint=HINT) from error
        if _version(folder) == before:
            return result
    raise VerificationError(
        f"the bundle was replaced during each of {READS} reads", where=f"`{folder}`", hint="wait for the writer to end"
    )


def exchange(staged: Path, target: Path) -> None:
    """Move the folder `staged` to `target`, and delete the old folder there; raises OSError, the old folder unchanged.

    Leftovers of killed writers to `target` disappear too.
    """
    parent = target.absolute().parent
    with locked(parent):
        if target.exists() and swap(staged, target):
            sync_folder(parent)
            shutil.rmtree(staged, ignore_errors=True)
        else:
            _rename_twice(staged, target)
        for leftover in _leftovers(target):
            shutil.rmtree(leftover, ignore_errors=True)


def swap(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; returns False where the system cannot."""
    import ctypes  # only a compile needs it

    at_cwd, exchange_names = -100, 2
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # TypeError on Windows
        return False
    return not call(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange_names)


def repair(target: Path) -> None:
    """Give the bundle `target` its name back if a writer died between two renames; waits for a writer that lives."""
    if os.path.lexists(target) or not _leftovers(target):
        return
    with locked(target.absolute().parent) as mine:
        complete = [folder for folder in _leftovers(target) if (folder / MANIFEST).is_file()]
        if mine and complete and not os.path.lexists(target):
            with suppress(OSError):
                complete[-1].rename(target)


def sweep_staged(parent: Path, pattern: str) -> None:
    """Delete the folders in `parent` whose name fits the regular expression and whose writer holds no lock any more."""
    for name in os.listdir(parent):
        if re.fullmatch(pattern, name) and (parent / name).is_dir() and not (parent / name).is_symlink():
            with locked(parent / name, wait=False) as mine:
                if mine:
                    shutil.rmtree(parent / name, ignore_errors=True)


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a folder; yields False if another holder exists, or the system has no such locks."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        yield lock(handle, wait=wait)
    finally:
        os.close(handle)


def _rename_twice(staged: Path, target: Path) -> None:
    """Rename `staged` to `target`; an old bundle moves aside first, and back if the second rename fails."""
    aside = target.absolute().parent / f".{target.absolute().name}.{uuid.uuid4().hex[:8]}"
    if target.exists():
        target.rename(aside)
    try:
        staged.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    sync_folder(target.absolute().parent)


def _leftovers(target: Path) -> list[Path]:
    """The folders that killed writers to `target` moved aside, oldest first."""
    target = target.absolute()
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}")
    with suppress(OSError):
        found = [target.parent / name for name in os.listdir(target.parent) if pattern.fullmatch(name)]
        return sorted((path for path in found if path.is_dir()), key=lambda path: path.stat().st_mtime_ns)
    return []


def _version(folder: Path) -> tuple[int, ...] | None:
    """Numbers that a replacement of the folder changes; None without a bundle."""
    try:
        place, manifest = os.stat(folder), os.stat(folder / MANIFEST)
    except OSError:
        return None
    return place.st_dev, place.st_ino, place.st_ctime_ns, manifest.st_ino, manifest.st_size, manifest.st_mtime_ns
