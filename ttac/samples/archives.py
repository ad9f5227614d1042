"""The arrays that an `.npz` file states, read without inflating their data."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.lib.npyio import NpzFile

from ttac.errors import UsageError

UNPACKED, RATIO = 1 << 29, 100
"""Bytes of an array from which it is suspicious, and how much smaller its compressed form then is at least: images
compress to a tenth, zeros to a thousandth."""


class Stated(NamedTuple):
    """Shape and dtype that the header of an array states."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def bytes(self) -> int:
        """Bytes of the inflated array."""
        return math.prod(self.shape) * self.dtype.itemsize


def stated_arrays(path: Path) -> dict[str, Stated]:
    """Name -> shape and dtype of every array in the `.npz` file.

    Raises OSError, ValueError or zipfile.BadZipFile where the file is no such archive.
    """
    stated: dict[str, Stated] = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            if entry.endswith(".npy"):
                with archive.open(entry) as member:
                    old = npy.read_magic(member) == (1, 0)
                    shape, _, dtype = (npy.read_array_header_1_0 if old else npy.read_array_header_2_0)(member)
                stated[entry.removesuffix(".npy")] = Stated(tuple(shape), dtype)
    return stated


def open_archive(path: Path) -> NpzFile:
    """Open the `.npz` file, without pickles; the caller closes the archive.

    Raises UsageError where an array would not fit the memory, and OSError, ValueError, EOFError or zipfile.BadZipFile
    where the file is no such archive.
    """
    refuse_large(path)
    archive: NpzFile = np.load(path, allow_pickle=False)
    return archive


def refuse_large(path: Path) -> None:
    """Raise UsageError where an array of the `.npz` file states more than half of this machine's memory.

    So does an array of more than `UNPACKED` bytes that fills less than a `RATIO`-th of that in the file: an archive of
    a few megabytes may inflate to any size.
    """
    limit = physical_memory() // 2
    with zipfile.ZipFile(path) as archive:
        packed = {entry.filename.removesuffix(".npy"): entry.compress_size for entry in archive.infolist()}
    for name, stated in stated_arrays(path).items():
        problem = ""
        if limit and stated.bytes > limit:
            problem = "more than half of this machine's memory"
        elif stated.bytes > max(UNPACKED, RATIO * packed[name]):
            problem = f"more than {RATIO} times its size in the file"
        if problem:
            raise UsageError(
                f"the array `{name}` states shape {list(stated.shape)}, {problem}",
                where=f"`{path}`",
                hint="save the array as `.npy`, which ttac maps instead of reading",
            )


def physical_memory() -> int:
    """Bytes of memory that this machine has, 0 where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
