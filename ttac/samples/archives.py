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

    An archive of a few megabytes may inflate to any size.
    """
    limit = physical_memory() // 2
    for name, stated in stated_arrays(path).items():
        if limit and stated.bytes > limit:
            raise UsageError(
                f"the array `{name}` states shape {list(stated.shape)}, more than half of this machine's memory",
                where=f"`{path}`",
                hint="save the array as `.npy`, which ttac maps instead of reading",
            )


def physical_memory() -> int:
    """Bytes of memory that this machine has, 0 where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
