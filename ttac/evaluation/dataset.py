"""The samples of an evaluation: images or prepared samples, with or without labels, in every form that ttac reads.

A data set is opened before any model is known.  It has a number of samples and a digest of their content, and returns
arrays in the geometry of a model.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ttac.errors import UsageError
from ttac.evaluation.idx import image_file, is_idx, label_file, read_idx
from ttac.runtime.hash_check import digest_of
from ttac.samples.archives import open_archive
from ttac.samples.image_folder import ImageFolder
from ttac.samples.images import Preparation, channels_first, fitted_image, prepared_floats, read_image
from ttac.samples.labels import refuse_texts

FORMS = "give a folder of images, an `.npz`, an `.npy`, or IDX files such as Fashion-MNIST's"
CLEAN = "clean"
NO_SHIFT = ("labels", "about")
"""Arrays of an `.npz` that hold no samples."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Samples before a model is known.

    Attributes:
        name: name of the samples in messages and reports.
        digest: SHA-256 of their content.
        count: number of samples.
        labels: classes int64 [count], or numbers [count, ...] for other heads than `classes`, or None.
        variants: names of the arrays, all of the same samples; the first array is the clean one.
        read: function of a variant, positions and a preparation that returns uint8 [n, C, H, W], prepared float32, or
            for several inputs arrays by their names (`ttac.evaluation.named_data`).
    """

    name: str
    digest: str
    count: int
    labels: np.ndarray | None
    variants: tuple[str, ...]
    read: Callable[[str, np.ndarray, Any], Any] = field(repr=False)


def open_dataset(data: Any) -> Dataset:
    """Return the samples of a path, of arrays, or of an iterator.

    Args:
        data: a path (folder of images whose sub-folders are the classes, `.npz`, `.npy`, IDX file or a folder of IDX
            files); an array; a pair (array, labels); a mapping from shift to array, possibly with `labels`; or an
            iterable of batches, each an array or a pair, which is read once and kept in memory.

    Raises UsageError when there is nothing to read, or when the parts do not fit together.
    """
    if isinstance(data, (str, Path)):
        return _open_path(Path(data))
    if isinstance(data, np.ndarray):
        return _of_arrays("array", {CLEAN: data}, None)
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], np.ndarray):
        return _of_arrays("array", {CLEAN: data[0]}, data[1])
    if isinstance(data, Mapping):
        arrays = {str(name): np.asarray(array) for name, array in data.items() if name not in NO_SHIFT}
        return _of_arrays("arrays", arrays, data.get("labels"))
    if isinstance(data, Iterable):
        return _collected(data)
    raise UsageError(f"samples cannot be read from `{type(data).__name__}`", hint=FORMS)


def content_digest(data: Any) -> str:
    """Return the SHA-256 of samples in any form of `open_dataset`, or of arrays of any dtype by their names."""
    if isinstance(data, (str, Path)) and Path(data).suffix == ".npz" and Path(data).is_file():
        return digest_of(Path(data))
    return arrays_digest(data) if isinstance(data, Mapping) else open_dataset(data).digest


def arrays_digest(arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and numbers of arrays."""
    content = hashlib.sha256()
    for name, array in arrays.items():
        array = np.asarray(array)
        content.update(f"{name} {array.dtype} {array.shape}".encode())
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def subset(count: int, wanted: int | None) -> np.ndarray:
    """Return the positions of `wanted` of `count` samples in rising order, equal at every call; all for None."""
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:wanted])


def _open_path(path: Path) -> Dataset:
    if not path.exists():
        raise UsageError("there is no such input", where=f"`{path}`", hint=FORMS)
    if is_idx(path) or (path.is_dir() and any(path.glob("*-idx3-ubyte*"))):
        return _open_idx(image_file(path))
    if path.is_dir():
        return _open_folder(path)
    if path.suffix not in (".npy", ".npz"):
        raise UsageError(f"`{path.suffix or path.name}` is no form of input", where=f"`{path}`", hint=FORMS)
    try:
        if path.suffix == ".npy":
            return _of_arrays(path.name, {CLEAN: np.load(path, mmap_mode="r", allow_pickle=False)}, None)
        with open_archive(path) as file:
            arrays = {name: file[name] for name in file.files if name not in NO_SHIFT}
            labels = file["labels"] if "labels" in file.files else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot read the arrays: {error}", where=f"`{path}`", hint=FORMS) from error
    return _of_arrays(path.name, arrays, labels)


def _collected(batches: Iterable[Any]) -> Dataset:
    """Return the batches of an iterator as one data set."""
    parts: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for batch in batches:
        x, y = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
        parts.append(np.asarray(x))
        if y is not None:
            labels.append(np.asarray(y).reshape(-1))
    if not parts:
        raise UsageError("the iterator gave no batch", hint="an iterator can be read once only: make a new one")
    if labels and len(labels) != len(parts):
        raise UsageError("some batches have labels, others have none", hint="give labels with every batch or with none")
    try:
        return _of_arrays("iterator", {CLEAN: np.concatenate(parts)}, np.concatenate(labels) if labels else None)
    except ValueError as error:
        raise UsageError(f"the batches do not fit together: {error}", hint="give samples of one shape") from error


def _of_arrays(name: str, arrays: Mapping[str, np.ndarray], labels: Any) -> Dataset:
    """Return a data set of arrays of the same samples, in their order, with the clean array first."""
    count = _checked_count(name, arrays)
    order = tuple(sorted(arrays, key=lambda key: key != CLEAN))
    checked = checked_labels(labels, count, name)

    def read(variant: str, rows: np.ndarray, how: Preparation) -> np.ndarray:
        return geometry(arrays[variant][rows], how, f"`{name}`")

    digest = arrays_digest({**{key: arrays[key] for key in order}, **({} if checked is None else {"labels": checked})})
    return Dataset(name=name, digest=digest, count=count, labels=checked, variants=order, read=read)


def _checked_count(name: str, arrays: Mapping[str, np.ndarray]) -> int:
    """Return the number of samples; raises UsageError for arrays that hold none, differ, or have another dtype."""
    if not arrays:
        raise UsageError("there is no array of samples", where=f"`{name}`", hint=FORMS)
    count = len(next(iter(arrays.values()))) if next(iter(arrays.values())).ndim else 0
    for key, array in arrays.items():
        if array.ndim < 2 or len(array) == 0:
            raise UsageError(f"array `{key}` holds no sample", where=f"`{name}`", hint=FORMS)
        if len(array) != count:
            problem = f"array `{key}` has {len(array)} samples, the first one {count}"
            raise UsageError(problem, where=f"`{name}`", hint="give arrays of the same samples, or one file for each")
        if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
            hint = "give uint8 images or prepared float32 samples"
            raise UsageError(f"array `{key}` is `{array.dtype}`", where=f"`{name}`", hint=hint)
    return count


def geometry(array: np.ndarray, how: Preparation, where: str) -> np.ndarray:
    """Return samples in the geometry of a model: bytes with channels first, other samples as float32.

    Raises UsageError when they have another shape.
    """
    if array.dtype == np.uint8:
        return np.ascontiguousarray(channels_first(array, how, where))
    return np.ascontiguousarray(prepared_floats(array, how, where), np.float32)


def checked_labels(labels: Any, count: int, where: str) -> np.ndarray | None:
    """Return the labels of `count` samples, int64 or float32 [count, ...]; raises UsageError for any other."""
    if labels is None:
        return None
    array = np.asarray(labels)
    refuse_texts(array, f"`{where}`")
    is_class = array.ndim == 1 and np.issubdtype(array.dtype, np.integer) and not (array < 0).any()
    if array.shape[:1] != (count,) or not (is_class or (array.ndim > 1 and array.dtype.kind in "iuf")):
        problem = f"there are {count} samples, but the labels are `{array.dtype}` of shape {list(array.shape)}"
        hint = "give one class number, from 0, for each sample; numbers [n, ...] for other heads; or no labels"
        raise UsageError(problem, where=f"`{where}`", hint=hint)
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _open_idx(path: Path) -> Dataset:
    images, beside = read_idx(path), label_file(path)
    if images.ndim != 3 or not len(images):
        raise UsageError(f"the file holds shape {list(images.shape)}, not images", where=f"`{path}`", hint=FORMS)
    labels = None if beside is None else checked_labels(read_idx(beside), len(images), str(beside))
    content = hashlib.sha256(images.data)
    content.update(b"" if labels is None else labels.tobytes())

    def read(variant: str, rows: np.ndarray, how: Preparation) -> np.ndarray:
        from PIL import Image

        if how.size == (1, *images.shape[1:]):
            return geometry(images[rows], how, f"`{path}`")
        return np.stack([fitted_image(Image.fromarray(images[row]), how.size) for row in rows])

    digest = content.hexdigest()
    return Dataset(name=path.name, digest=digest, count=len(images), labels=labels, variants=(CLEAN,), read=read)


def _open_folder(path: Path) -> Dataset:
    folder = ImageFolder(path)
    files, labels = folder.files, folder.labels()

    def read(variant: str, rows: np.ndarray, how: Preparation) -> np.ndarray:
        return np.stack([read_image(files[row], how.size) for row in rows])

    digest = folder.digest()
    return Dataset(name=path.name, digest=digest, count=len(files), labels=labels, variants=(CLEAN,), read=read)
