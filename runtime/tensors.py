"""safetensors files, mapped into memory: reading one copies nothing, and nothing in it can run code."""

from __future__ import annotations

import json
import mmap
import os
import struct
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ttac.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from ttac.runtime.records import TensorSpec

DTYPES = {
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "BOOL": "bool",
}


def map_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The file's tensors as read-only views of the mapped file, and its metadata.

    The file must not change while they are used.  Raises VerificationError if it is not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise VerificationError(
            f"the file is not a whole safetensors file: {error}", where=f"`{path}`", hint="copy it again"
        ) from error
    memory = np.memmap(path, np.uint8, "r")
    (length,) = struct.unpack("<Q", bytes(memory[:8]))
    header = json.loads(bytes(memory[8 : 8 + length]))
    header.pop("__metadata__", None)
    data = memory[8 + length :]
    return {name: _view(data, name, entry, path) for name, entry in header.items()}, metadata


def leave_on_disk(arrays: Iterable[np.ndarray]) -> None:
    """Take the mapped files that `arrays` are views of out of memory; what is read again comes back from the file.

    Does nothing about arrays that are not mapped, and on systems that cannot.
    """
    for file in {id(found): found for found in map(_mapping, arrays) if found is not None}.values():
        if hasattr(file, "madvise"):
            file.madvise(mmap.MADV_DONTNEED)


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def check_tensors(tensors: Mapping[str, np.ndarray], specs: Mapping[str, TensorSpec], where: str) -> None:
    """Raise VerificationError unless `tensors` are those of the state table, by name, dtype and shape."""
    odd = sorted(set(tensors) ^ set(specs))
    if odd:
        how = "lacks" if odd[0] in specs else "has, beyond the state table,"
        raise VerificationError(f"the state {how} `{odd[0]}`", where=where, hint="copy the file again")
    for name, spec in specs.items():
        found = tensors[name]
        if (str(found.dtype), found.shape) != (spec.dtype, spec.shape):
            raise VerificationError(
                f"`{name}` is {found.dtype} {list(found.shape)}, the state table says {spec.dtype} {list(spec.shape)}",
                where=where,
                hint="copy the file again",
            )


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write contiguous arrays as a safetensors file, under a temporary name first: `path` is whole or as before.

    Raises UsageError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        save_file(dict(tensors), temporary, dict(metadata))
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot write the file: {error}", where=f"`{path}`", hint="give a writable path") from error
    finally:
        temporary.unlink(missing_ok=True)


def first_not_finite(tensors: Mapping[str, np.ndarray]) -> str:
    """The name of the first tensor with an infinity or NaN, empty if there is none."""
    return next((name for name, array in tensors.items() if not is_finite(array)), "")


def is_finite(array: np.ndarray, chunk: int = 1 << 16) -> bool:
    """Whether all values are finite, looking at `chunk` values at a time so that no large mask is made."""
    if array.dtype.kind != "f":
        return True
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[start : start + chunk]).all()) for start in range(0, flat.size, chunk))


def _view(data: np.ndarray, name: str, entry: Mapping[str, Any], path: Path) -> np.ndarray:
    if entry["dtype"] not in DTYPES:
        raise VerificationError(
            f"`{name}` has the unknown dtype {entry['dtype']}", where=f"`{path}`", hint="recompile it"
        )
    dtype, (start, end) = np.dtype(DTYPES[entry["dtype"]]), entry["data_offsets"]
    found = data[start:end].view(np.ndarray)
    if found.ctypes.data % dtype.itemsize:
        found = found.copy()
    return found.view(dtype).reshape(entry["shape"])
