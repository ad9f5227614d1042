"""safetensors files as arrays: reading copies nothing, and no content can run code."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttac.errors import VerificationError
from ttac.runtime.json_values import HINT, distinct_keys

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
"""Element types of safetensors -> numpy's names."""

METADATA = "__metadata__"
LARGEST_HEADER = 100_000_000
"""Most bytes of a header; the limit of the safetensors library."""

Tensors = dict[str, np.ndarray]


def along(axis: int, index: Any) -> tuple[Any, ...]:
    """Return the key that takes `index` along `axis` of an array, and all of the axes before."""
    return (*(slice(None),) * axis, index)


def map_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors of the file as read-only views of the mapped file, and its metadata.

    The file must not change while the views are used.  Raises VerificationError if it is no whole safetensors file.
    """
    try:
        data: np.ndarray = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise _not_whole(str(error), f"`{path}`") from error
    return parse_tensors(data, f"`{path}`")


def parse_tensors(data: np.ndarray, where: str) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors in the bytes `data` as views, and the metadata.

    Raises VerificationError unless `data` is a whole safetensors file whose tensors cover all bytes after the header.
    """
    try:
        length = int.from_bytes(data[:8].tobytes(), "little")
        if len(data) < 8 or length > min(len(data) - 8, LARGEST_HEADER):
            raise ValueError("the header is longer than the file")
        header = json.loads(data[8 : 8 + length].tobytes(), object_pairs_hook=distinct_keys)
        metadata = _metadata(header.pop(METADATA, {}))
        body = data[8 + length :].view(np.ndarray)
        _check_cover({name: _span(entry) for name, entry in header.items()}, len(body))
        return {name: _array(body, entry) for name, entry in header.items()}, metadata
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _not_whole(str(error), where) from error


def header_of(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> tuple[bytes, list[np.ndarray]]:
    """Return the first bytes of a safetensors file of `tensors`, and the arrays in the order of the file."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    entries: dict[str, Any] = {METADATA: dict(metadata)}
    end = 0
    for name in order:
        array = tensors[name]
        start, end = end, end + array.nbytes
        entries[name] = {
            "dtype": names[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [tensors[name] for name in order]


def leave_on_disk(arrays: Iterable[np.ndarray]) -> None:
    """Free the memory pages of the mapped files behind `arrays`; the next read brings them back from the file.

    Arrays that are not mapped stay unchanged, and so does everything on systems without `madvise`.
    """
    for file in {id(mapping): mapping for mapping in map(_mapping, arrays) if mapping is not None}.values():
        if hasattr(file, "madvise"):
            file.madvise(mmap.MADV_DONTNEED)


def return_freed_memory() -> None:
    """Return memory that the process freed to the system; does nothing where the C library has no `malloc_trim`.

    Loading a graph frees buffers as large as its weights, and glibc keeps them for the process.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def check_tensors(tensors: Mapping[str, np.ndarray], specs: Mapping[str, TensorSpec], where: str) -> None:
    """Raise VerificationError unless `tensors` fit the state table by name, dtype and shape."""
    odd = sorted(set(tensors) ^ set(specs))
    if odd:
        how = "lacks" if odd[0] in specs else "has, beyond the state table,"
        raise VerificationError(f"the state {how} `{odd[0]}`", where=where, hint="copy the file again")
    for name, spec in specs.items():
        array = tensors[name]
        if (str(array.dtype), array.shape) != (spec.dtype, spec.shape):
            raise VerificationError(
                f"`{name}` is {array.dtype} {list(array.shape)}, the state table says {spec.dtype} {list(spec.shape)}",
                where=where,
                hint="copy the file again",
            )


def check_output(array: np.ndarray, spec: TensorSpec, samples: int, where: str) -> None:
    """Raise VerificationError unless the output of a step has the dtype and the shape of the manifest."""
    shape = [samples if axis == spec.batch_axis else size for axis, size in enumerate(spec.shape)]
    fits = len(array.shape) == len(shape) and all(
        isinstance(size, str) or size == n for size, n in zip(shape, array.shape)
    )
    if not fits or array.dtype != spec.dtype:
        problem = f"`{spec.name}` is {array.dtype} {list(array.shape)}, the manifest says {spec.dtype} {shape}"
        raise VerificationError(problem, where=where, hint=HINT)


def first_not_finite(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the name of the first tensor with an infinity or NaN, empty if there is none."""
    return next((name for name, array in tensors.items() if not is_finite(array)), "")


def is_finite(array: np.ndarray, chunk: int = 1 << 16) -> bool:
    """Whether all values are finite; reads `chunk` values at a time, so that no large mask is made."""
    if array.dtype.kind != "f":
        return True
    flat = array.reshape(-1)
    if flat.size == 1:
        return math.isfinite(flat.item())
    if flat.size <= chunk:
        return bool(np.isfinite(flat).all())
    return all(bool(np.isfinite(flat[start : start + chunk]).all()) for start in range(0, flat.size, chunk))


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    base: Any = array
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("the metadata is no table of strings")
    return value


def _span(entry: Any) -> tuple[int, int]:
    """Start and end of the tensor's bytes; raises ValueError unless they fit its dtype and shape."""
    if set(entry) != {"dtype", "shape", "data_offsets"} or entry["dtype"] not in DTYPES:
        raise ValueError(f"a tensor is described by {entry}")
    start, end = entry["data_offsets"]
    sizes = [*entry["shape"], start, end]
    if any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError(f"a tensor is described by {entry}")
    if end - start != math.prod(entry["shape"]) * np.dtype(DTYPES[entry["dtype"]]).itemsize:
        raise ValueError(f"a tensor of shape {entry['shape']} has {end - start} bytes")
    return start, end


def _check_cover(spans: Mapping[str, tuple[int, int]], size: int) -> None:
    end = 0
    for start, following in sorted(spans.values()):
        if start != end:
            raise ValueError("tensors overlap, or bytes between them belong to none")
        end = following
    if end != size:
        raise ValueError(f"the tensors have {end} bytes, the file has {size}")


def _array(body: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    dtype, (start, end) = np.dtype(DTYPES[entry["dtype"]]), entry["data_offsets"]
    view = body[start:end]
    if view.ctypes.data % dtype.itemsize:
        view = view.copy()
    return view.view(dtype).reshape(entry["shape"])


def _not_whole(problem: str, where: str) -> VerificationError:
    return VerificationError(
        f"the file is not a whole safetensors file: {problem}", where=where, hint="copy the file again"
    )
