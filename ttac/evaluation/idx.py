"""Files in the IDX format of MNIST and its relatives, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np

from ttac.errors import UsageError

BYTES = 0x08
"""The type code of unsigned bytes, the only type read here."""

LARGEST = 2**31
"""Bytes that a file may hold unpacked; a larger one is not read."""


def is_idx(path: Path) -> bool:
    """Whether the name is that of an IDX file: `...-idx3-ubyte`, perhaps with `.gz`."""
    return path.name.removesuffix(".gz").endswith("-ubyte")


def read_idx(path: Path) -> np.ndarray:
    """uint8 array with the file's own shape; raises UsageError when the file is not what its header says."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _wrong(path, str(error)) from error
    if len(content) > LARGEST:
        raise _wrong(path, "it unpacks to more than 2 GiB")
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != BYTES:
        raise _wrong(path, "it does not begin like an IDX file of bytes")
    axes = content[3]
    shape = tuple(int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes))
    start = 4 + 4 * axes
    if len(content) - start != prod(shape):
        raise _wrong(path, f"its header promises shape {list(shape)}, {len(content) - start} bytes follow")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def image_file(path: Path) -> Path:
    """The file of images that `path` names: itself, or the test images in a folder.

    Raises UsageError when a folder holds no or several such files.
    """
    if path.is_file():
        return path
    found = sorted(file for file in path.glob("*-idx3-ubyte*") if is_idx(file))
    tests = [file for file in found if file.name.startswith("t10k")] or found
    if len(tests) != 1:
        told = ", ".join(f"`{file.name}`" for file in found) or "none"
        raise UsageError(f"the folder holds no single file of images: {told}", where=f"`{path}`", hint="name the file")
    return tests[0]


def label_file(images: Path) -> Path | None:
    """The file of labels beside a file of images, None where there is none."""
    for name in (images.name, images.name.removesuffix(".gz"), images.name.removesuffix(".gz") + ".gz"):
        labels = images.with_name(name.replace("images-idx3", "labels-idx1"))
        if labels != images and labels.is_file():
            return labels
    return None


def _wrong(path: Path, why: str) -> UsageError:
    return UsageError(f"cannot read the IDX file: {why}", where=f"`{path}`", hint="copy the file again")
