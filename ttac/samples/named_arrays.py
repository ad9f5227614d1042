"""Samples for several inputs: arrays by the names of the inputs, from an `.npz` or a mapping."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttac.errors import UsageError
from ttac.runtime.records import BATCH_AXIS
from ttac.runtime.tensors import along
from ttac.samples.archives import open_archive, stated_arrays
from ttac.samples.images import Stream
from ttac.suggest import did_you_mean

LABELS = "labels"
"""Array of an `.npz` that no input takes."""


@dataclass(frozen=True, kw_only=True)
class InputSizes:
    """An input of a model: `sizes` has None for an open size, `axis` is that of the samples, None if it has none."""

    name: str
    dtype: str
    axis: int | None
    sizes: tuple[int | None, ...]


def read_arrays(source: Any, inputs: Sequence[InputSizes], where: str) -> tuple[dict[str, np.ndarray], Any]:
    """Return the array of each input in the dtype of the model, and the labels or None.

    Args:
        source: an `.npz` file with an array of the name of each input, or such a mapping.
        where: the place in error messages.

    Raises UsageError for another form, a missing array, a wrong shape or dtype, and arrays that disagree about the
    number of samples.
    """
    arrays = _arrays(source, inputs, where)
    for name in arrays:
        if name != LABELS and name not in (names := [each.name for each in inputs]):
            problem = f"the model has no input `{name}`"
            raise UsageError(problem, where=where, hint=did_you_mean(name, names))
    ready = {each.name: _fitted(arrays[each.name], each, where) for each in inputs}
    counts = {each.name: ready[each.name].shape[each.axis] for each in inputs if each.axis is not None}
    labels = arrays.get(LABELS)
    if labels is not None:
        counts[LABELS] = len(labels)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"`{name}` {count}" for name, count in counts.items())
        problem = f"the arrays differ in their number of samples: {listed}"
        raise UsageError(problem, where=where, hint="give the same samples in each array")
    if not all(counts.values()):
        raise UsageError("the arrays hold no sample", where=where, hint="give at least one sample")
    return ready, labels


def input_sizes(inputs: Sequence[Mapping[str, Any]]) -> tuple[InputSizes, ...]:
    """Return the sizes of the `inputs` of a manifest."""
    return tuple(
        InputSizes(
            name=entry["name"],
            dtype=entry["dtype"],
            axis=entry["shape"].index(BATCH_AXIS) if BATCH_AXIS in entry["shape"] else None,
            sizes=tuple(size if isinstance(size, int) else None for size in entry["shape"]),
        )
        for entry in inputs
    )


def taken(arrays: Mapping[str, np.ndarray], axes: Mapping[str, int | None], rows: Any) -> dict[str, np.ndarray]:
    """Return the samples `rows`, positions or a slice, of named arrays; a shared array is whole."""
    return {name: array if (axis := axes[name]) is None else array[along(axis, rows)] for name, array in arrays.items()}


def named_stream(path: Path, inputs: Sequence[Mapping[str, Any]]) -> Stream:
    """Return the samples of an `.npz` with an array for each of the manifest's `inputs`, and its labels.

    Raises UsageError where the arrays do not fit.
    """
    sizes = input_sizes(inputs)
    if not path.exists():
        raise UsageError(
            "there is no such input", where=f"`{path}`", hint="give an `.npz` with an array for each input"
        )
    arrays, labels = read_arrays(path, sizes, f"`{path}`")
    axes = {each.name: each.axis for each in sizes}
    count = next(arrays[name].shape[axis] for name, axis in axes.items() if axis is not None)

    def read(start: int, stop: int) -> dict[str, np.ndarray]:
        return taken(arrays, axes, slice(start, stop))

    return Stream(count=count, read=read, labels=labels)


def with_sizes(entry: Mapping[str, Any], manifest: Mapping[str, Any], sample: Sequence[int] = ()) -> dict[str, Any]:
    """The entry of an input, with the sizes of a `sample` for its open sizes, or the largest ones."""
    largest = {size["name"]: size["largest"] for size in manifest.get("sizes", [])}
    _, *sizes = entry["shape"]
    given = sample if len(sample) == len(sizes) else [largest.get(size, size) for size in sizes]
    bound = [own if size in largest else size for size, own in zip(sizes, given, strict=True)]
    return {**entry, "shape": [BATCH_AXIS, *bound]}


def sample_shape(path: Path, array: str | None = None) -> tuple[int, ...]:
    """Shape of one sample of an `.npz` or `.npy`; empty for another path, or one that holds no such array."""
    try:
        if path.suffix == ".npy":
            return tuple(np.load(path, mmap_mode="r", allow_pickle=False).shape[1:])
        if path.suffix == ".npz":
            stated = {name: each.shape[1:] for name, each in stated_arrays(path).items() if name != LABELS}
            return stated.get(array, ()) if array else next(iter(stated.values()), ())
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return ()
    return ()


def _arrays(source: Any, inputs: Sequence[InputSizes], where: str) -> dict[str, np.ndarray]:
    names = ", ".join(f"`{each.name}`" for each in inputs)
    hint = f"give an `.npz` with the arrays {names}"
    if isinstance(source, Mapping):
        arrays = {str(name): np.asarray(array) for name, array in source.items()}
    elif isinstance(source, (str, Path)) and Path(source).suffix == ".npz":
        try:
            with open_archive(Path(source)) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UsageError(f"cannot read the arrays: {error}", where=where, hint=hint) from error
    else:
        raise UsageError("the model takes several inputs, or samples on another axis", where=where, hint=hint)
    missing = [each.name for each in inputs if each.name not in arrays]
    if missing:
        raise UsageError(f"there is no array for the input `{missing[0]}`", where=where, hint=hint)
    return arrays


def _fitted(array: np.ndarray, each: InputSizes, where: str) -> np.ndarray:
    dtype = np.dtype(each.dtype)
    same_kind = array.dtype.kind == "f" == dtype.kind
    if not same_kind and not (dtype.kind != "f" and np.can_cast(array.dtype, dtype, "safe")):
        problem = f"the array of the input `{each.name}` is {array.dtype}, the model takes {each.dtype}"
        raise UsageError(problem, where=where, hint=f"`.astype(np.{each.dtype})`, if the values mean the same")
    fixed = [size if axis != each.axis else None for axis, size in enumerate(each.sizes)]
    fits = array.ndim == len(fixed) and all(b in (None, a) for a, b in zip(array.shape, fixed, strict=True))
    if not fits:
        shown = ", ".join("N" if axis == each.axis else str(size or "?") for axis, size in enumerate(each.sizes))
        problem = f"the array of the input `{each.name}` has shape {list(array.shape)}, the model takes [{shown}]"
        raise UsageError(problem, where=where, hint="resize or transpose the samples")
    return np.ascontiguousarray(array, dtype).reshape(array.shape)
