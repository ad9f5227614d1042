"""Files in the IDX format of MNIST and its relatives, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np

from ttac.errors import UsageError

BYTE_CODE = 0x08
"""Type code of unsigned bytes, the only type that this module reads."""

LARGEST = 2**31
"""Largest number of bytes of an unpacked file."""


def is_idx(path: Path) -> bool:
    """Whether the path has the name of an IDX file: `...-idx3-ubyte`, possibly with `.gz`."""
    return path.name.removesuffix(".gz").endswith("-ubyte")


def read_idx(path: Path) -> np.ndarray:
    """Return a uint8 array with the shape in the file's header; raises UsageError when the content does not fit it."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _wrong(path, str(error)) from error
    if len(content) > LARGEST:
        raise _wrong(path, "it unpacks to more than 2 GiB")
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != BYTE_CODE:
        raise _wrong(path, "it does not begin like an IDX file of bytes")
    axes = content[3]
    shape = tuple(int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes))
    start = 4 + 4 * axes
    if len(content) - start != prod(shape):
        raise _wrong(path, f"its header promises shape {list(shape)}, {len(content) - start} bytes follow")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def image_file(path: Path) -> Path:
    """Return `path` if it is a file, otherwise the file of test images in this folder.

    Raises UsageError when the folder holds no such file, or several.
    """
    if path.is_file():
        return path
    files = sorted(file for file in path.glob("*-idx3-ubyte*") if is_idx(file))
    tests = [file for file in files if file.name.startswith("t10k")] or files
    if len(tests) != 1:
        names = ", ".join(f"`{file.name}`" for file in files) or "none"
        raise UsageError(f"the folder holds no single file of images: {names}", where=f"`{path}`", hint="name the file")
    return tests[0]


def label_file(images: Path) -> Path | None:
    """Return the file of labels next to a file of images; None where there is no such file."""
    for name in (images.name, images.name.removesuffix(".gz"), images.name.removesuffix(".gz") + ".gz"):
        labels = images.with_name(name.replace("images-idx3", "labels-idx1"))
        if labels != images and labels.is_file():
            return labels
    return None


def _wrong(path: Path, why: str) -> UsageError:
    return UsageError(f"cannot read the IDX file: {why}", where=f"`{path}`", hint="copy the file again")
