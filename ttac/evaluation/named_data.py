"""The samples of models with several inputs, or with samples on another axis than the first: arrays by their names.

An array `NAME` is the clean input, an array `NAME/SHIFT` takes its place in the shift `SHIFT`; inputs without such an
array are clean there too.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ttac.errors import UsageError
from ttac.evaluation.dataset import CLEAN, Dataset, arrays_digest, checked_labels
from ttac.options import parsed
from ttac.runtime.bundle import is_bundle, read_manifest
from ttac.runtime.records import BATCH_AXIS
from ttac.samples.archives import open_archive
from ttac.samples.images import Preparation, preparation
from ttac.samples.named_arrays import LABELS, InputSizes, input_sizes, read_arrays, taken, with_sizes
from ttac.source_model import load_source
from ttac.source_samples import sizes_of

SHIFT = "/"
"""Sign between the name of an input and the name of a shift."""


@dataclass(frozen=True)
class NamedInputs:
    """The rule by which named arrays become the inputs of a model."""

    inputs: tuple[InputSizes, ...]

    @property
    def axes(self) -> dict[str, int | None]:
        """Name of an input -> its axis with the samples; None for an input that all samples share."""
        return {each.name: each.axis for each in self.inputs}


def named_inputs(paths: Sequence[Path], options: Mapping[str, Any]) -> tuple[InputSizes, ...]:
    """Return the inputs of the first model that takes arrays by their names; none if all take one array of samples.

    Args:
        options: of `ttac.compile`.

    Raises UsageError if models take inputs of other names, and the errors of `load_source`.
    """
    every = [inputs for path in paths if not _is_plain(inputs := _inputs(path, options))]
    if every and (len(every) < len(paths) or any(_names(inputs) != _names(every[0]) for inputs in every)):
        problem = "the models take inputs of other names"
        raise UsageError(problem, where="`" + "`, `".join(map(str, paths)) + "`", hint="evaluate them one by one")
    return every[0] if every else ()


def open_named(data: Any, inputs: Sequence[InputSizes]) -> Dataset:
    """Return the samples of an `.npz` or of a mapping with an array for each of the `inputs`.

    Raises UsageError for a missing array, one that does not fit, or arrays that disagree about the number of samples.
    """
    where, arrays = _read(data)
    names = [each.name for each in inputs]
    shifts = dict.fromkeys(name.partition(SHIFT)[2] for name in arrays if _shifted(name, names))
    own = {name: array for name, array in arrays.items() if not _shifted(name, names)}
    streams, labels = {}, None
    for shift in (CLEAN, *(shift for shift in shifts if shift != CLEAN)):
        changed = {name: arrays[f"{name}{SHIFT}{shift}"] for name in names if f"{name}{SHIFT}{shift}" in arrays}
        streams[shift], labels = read_arrays({**own, **changed}, inputs, where)
    axes = NamedInputs(tuple(inputs)).axes
    count = next(streams[CLEAN][name].shape[axis] for name, axis in axes.items() if axis is not None)
    known = checked_labels(labels, count, where)
    every = {f"{shift} {name}": streams[shift][name] for shift in streams for name in names}
    digest = arrays_digest(every if known is None else {**every, LABELS: known})

    def read(variant: str, rows: np.ndarray, how: Preparation | NamedInputs) -> dict[str, np.ndarray]:
        return taken(streams[variant], axes, rows)

    return Dataset(
        name=where.strip("`"),
        digest=digest,
        count=count,
        labels=known,
        variants=tuple(streams),
        read=read,
    )


def preparation_of(bundle: Path) -> Preparation | NamedInputs:
    """Return the rule by which bytes, or arrays by their names, become the inputs of the bundle's model."""
    manifest = read_manifest(bundle)
    entry, *others = manifest["inputs"]
    if others or entry["shape"][0] != BATCH_AXIS:
        return NamedInputs(input_sizes(manifest["inputs"]))
    entry = with_sizes(entry, manifest)
    return preparation(entry["shape"], manifest["preprocessing"], entry["dtype"])


def gathered_feeds(
    arrays: Sequence[Mapping[str, np.ndarray]], shifts: np.ndarray, rows: np.ndarray, axes: Mapping[str, int | None]
) -> dict[str, np.ndarray]:
    """Return the samples `rows[i]` of shift number `shifts[i]`; a shared input is that of the first sample's shift."""
    return {
        name: arrays[int(shifts[0])][name]
        if axis is None
        else np.stack([arrays[s][name].take(row, axis) for s, row in zip(shifts, rows, strict=True)], axis)
        for name, axis in axes.items()
    }


def _inputs(path: Path, options: Mapping[str, Any]) -> tuple[InputSizes, ...]:
    """Return the inputs of a model or bundle; of a model with one input, none."""
    if not path.exists():
        return ()
    if is_bundle(path):
        return input_sizes(read_manifest(path)["inputs"])
    chosen = parsed(options)
    if not chosen.get("batch_axis") and _count(path, chosen.get("hold") or {}) < 2:
        return ()
    model = load_source(path, chosen)
    return sizes_of(model, chosen.get("shape") or chosen.get("max_shape"))


def _count(path: Path, held: Mapping[str, Any]) -> int:
    """Return the number of inputs of a file, without weights and held inputs; 1 for a file that is no model."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:
        return 1
    given = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    return len(given - set(held))


def _is_plain(inputs: Sequence[InputSizes]) -> bool:
    return not inputs or (len(inputs) == 1 and inputs[0].axis == 0)


def _names(inputs: Sequence[InputSizes]) -> set[str]:
    return {each.name for each in inputs}


def _shifted(name: str, names: Sequence[str]) -> bool:
    return SHIFT in name and name not in names and name.partition(SHIFT)[0] in names


def _read(data: Any) -> tuple[str, dict[str, np.ndarray]]:
    """Return the name of the samples for messages, and all arrays."""
    if isinstance(data, Mapping):
        return "`data`", {str(name): np.asarray(array) for name, array in data.items()}
    hint = "give an `.npz` with an array by the name of each input"
    path = Path(str(data)) if isinstance(data, (str, Path)) else None
    if path is None or path.suffix != ".npz" or not path.exists():
        problem = "the model takes several inputs, or samples on another axis than the first"
        raise UsageError(problem, where=f"`{path or type(data).__name__}`", hint=hint)
    try:
        with open_archive(path) as file:
            return f"`{path}`", {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot read the arrays: {error}", where=f"`{path}`", hint=hint) from error
