"""Streams of samples: an `.npz`, an `.npy` or a folder of images, read as float32 batches that the model takes.

Float arrays count as prepared samples and pass unchanged.  Bytes (uint8) and images are prepared as the bundle says:
scaled to its range, minus the mean, divided by the standard deviation, in its layout.  A folder of images needs Pillow.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttac.errors import RuntimeMissingError, UsageError
from ttac.samples.archives import open_archive
from ttac.samples.image_folder import ImageFolder
from ttac.samples.labels import refuse_texts
from ttac.suggest import did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

CHANNELS = (1, 3, 4)
"""Numbers of channels that an image can have: grey, RGB, and RGB with one more channel."""
FORMS = "give an `.npz` (its first array), an `.npy` or a folder of images"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The rule by which bytes become the model's input.

    Attributes:
        sample: shape of one sample of the model's input, [C, H, W] or, with layout "NHWC", [H, W, C].
        span: values that byte 0 and byte 255 become.
        mean, std: `mean` is subtracted from the scaled values, then `std` divides them; one number or one per channel.
        known: False where the bundle states no rule; bytes then become [0, 1].
        dtype: of the model's input; a model of integers takes bytes unchanged.
    """

    sample: tuple[int, ...]
    layout: str = "NCHW"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    span: tuple[float, float] = (0.0, 1.0)
    known: bool = True
    dtype: str = "float32"

    @property
    def takes_floats(self) -> bool:
        """Whether the model's input holds floats, for which bytes must be scaled."""
        return np.dtype(self.dtype).kind == "f"

    @property
    def size(self) -> tuple[int, int, int]:
        """Channels, height and width of a sample; raises UsageError where a sample is no image."""
        if len(self.sample) != 3:
            problem = f"the model takes samples of shape {list(self.sample)}, not images"
            raise UsageError(problem, where="the input of the model", hint="give an array of floats, `.npy` or `.npz`")
        return self.sample if self.layout == "NCHW" else (self.sample[2], self.sample[0], self.sample[1])

    @property
    def stated(self) -> dict[str, Any]:
        """The rule as the manifest's entry `preprocessing`."""
        return {"layout": self.layout, "mean": list(self.mean), "std": list(self.std), "range": list(self.span)}

    def prepare(self, channels_first: np.ndarray) -> np.ndarray:
        """Return uint8 images [n, C, H, W] as samples [n, *sample] of `dtype`."""
        if not self.takes_floats:
            moved = channels_first if self.layout == "NCHW" else channels_first.transpose(0, 2, 3, 1)
            return np.ascontiguousarray(moved, self.dtype)
        low, high = self.span
        scaled = low + channels_first.astype(np.float32) * np.float32((high - low) / 255)
        mean, std = (np.asarray(v, np.float32).reshape(1, -1, 1, 1) for v in (self.mean, self.std))
        ready = (scaled - mean) / std
        return ready if self.layout == "NCHW" else np.ascontiguousarray(ready.transpose(0, 2, 3, 1))


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Samples in order.

    Attributes:
        count: number of samples.
        read: function of start and stop that returns float32 [stop - start, *sample], or arrays by
            the names of several inputs.
        labels: [count, ...], or None.
        prepared: False when the samples are bytes, which this module prepares.
        names: files of the samples, relative to their folder; none for an array.
        classes: sub-folders that give the labels, by class number; none for labels from an array.
        array: name of the samples among several arrays of an `.npz`, otherwise empty.
    """

    count: int
    read: Callable[[int, int], Any]
    labels: np.ndarray | None = None
    prepared: bool = True
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    array: str = ""

    def batches(self, size: int, smallest: int = 1) -> Iterator[Any]:
        """Yield batches of `size` samples; the last ones are smaller when the samples run out, none below `smallest`.

        Raises UsageError when the samples cannot be divided into such batches.
        """
        start = 0
        for count in division(self.count, size, smallest):
            yield self.read(start, start + count)
            start += count


def division(count: int, size: int, smallest: int) -> list[int]:
    """Return the number of samples of each batch, between `smallest` and `size`; raises UsageError if none fits."""
    batches = -(-count // size)
    sizes, spare = [size] * batches, batches * size - count
    for position in reversed(range(batches)):
        removed = min(spare, size - smallest)
        sizes[position], spare = size - removed, spare - removed
    if spare:
        problem = f"{count} samples cannot be divided into batches of {smallest} to {size}"
        raise UsageError(problem, hint=f"leave out {count % size}, or add {-count % size}")
    return sizes


def preparation(shape: Sequence[Any], stated: Mapping[str, Any] | None, dtype: str = "float32") -> Preparation:
    """Return the preparation that a manifest states.

    Args:
        shape: the input's shape with its batch axis.
        stated: the manifest's entry `preprocessing`, which may be null.
        dtype: of the model's input.

    Raises UsageError where the number of means or deviations does not fit the shape.
    """
    sample = tuple(int(size) for size in shape[1:])
    if stated is None:
        return Preparation(sample=sample, layout=likely_layout(sample), known=np.dtype(dtype).kind != "f", dtype=dtype)
    low, high = stated.get("range") or (0.0, 1.0)
    how = Preparation(
        sample=sample,
        layout=str(stated.get("layout") or likely_layout(sample)),
        mean=tuple(stated.get("mean") or (0.0,)),
        std=tuple(stated.get("std") or (1.0,)),
        span=(float(low), float(high)),
        dtype=dtype,
    )
    channels, *_ = how.size
    for name, numbers in (("mean", how.mean), ("std", how.std)):
        if len(numbers) not in (1, channels):
            problem = f"{len(numbers)} numbers are stated for `{name}`, the model's images have {channels} channels"
            raise UsageError(problem, where=f"`--pixels {name}=...`", hint="give one number, or one for each channel")
    return how


def likely_layout(sample: Sequence[int]) -> str:
    """Return "NHWC" where only the last of three sizes can count channels, as TensorFlow exports; otherwise "NCHW"."""
    return "NHWC" if len(sample) == 3 and sample[-1] in CHANNELS and sample[0] not in CHANNELS else "NCHW"


def open_stream(path: Path, how: Preparation, array: str | None = None) -> Stream:
    """Return the samples of `path`, checked against the model's input; `array` names the array of an `.npz` to read.

    Raises UsageError when the path has none of the three forms, is empty, or holds samples of another shape.
    """
    if path.is_dir():
        return _open_folder(path, how)
    if not path.exists():
        raise UsageError("there is no such input", where=f"`{path}`", hint=FORMS)
    samples, labels, name = _read_arrays(path, array)
    return replace(stream_of(samples, how, labels=labels, where=f"`{path}`"), array=name)


def stream_of(array: np.ndarray, how: Preparation, *, labels: np.ndarray | None = None, where: str = "") -> Stream:
    """Return the samples along the first axis of `array`; raises UsageError when they do not fit the model's input."""
    if array.ndim == 0 or len(array) == 0:
        raise UsageError("the input holds no sample", where=where, hint=FORMS)
    if labels is not None and labels.shape[:1] != array.shape[:1]:
        raise UsageError(
            f"there are {len(array)} samples, but `labels` has shape {list(labels.shape)}",
            where=where,
            hint="give labels for each sample, or remove the array `labels`",
        )
    if labels is not None:
        refuse_texts(labels, where)
    if array.dtype == np.uint8 and (how.takes_floats or array.shape[1:] != how.sample):
        ready = channels_first(array, how, where)
        return Stream(
            count=len(array), read=lambda start, stop: how.prepare(ready[start:stop]), labels=labels, prepared=False
        )
    ready = prepared_floats(array, how, where)
    return Stream(
        count=len(array),
        read=lambda start, stop: np.ascontiguousarray(ready[start:stop], how.dtype),
        labels=labels,
    )


def _read_arrays(path: Path, wanted: str | None) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Return the samples of an `.npy` or `.npz` file, the array `labels` of an `.npz`, and the samples' name there."""
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False), None, ""
        if path.suffix == ".npz":
            with open_archive(path) as arrays:
                names = [name for name in arrays.files if name != "labels"]
                name = _choose(names, wanted, path)
                labels = arrays["labels"] if "labels" in arrays.files else None
                return arrays[name], labels, name if len(names) > 1 else ""
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot read the arrays: {error}", where=f"`{path}`", hint=FORMS) from error
    raise UsageError(f"`{path.suffix or path.name}` is no form of input", where=f"`{path}`", hint=FORMS)


def _choose(names: list[str], wanted: str | None, path: Path) -> str:
    if not names:
        raise UsageError("the archive holds no array", where=f"`{path}`", hint=FORMS)
    if wanted is not None and wanted not in names:
        raise UsageError(f"the archive has no array `{wanted}`", where=f"`{path}`", hint=did_you_mean(wanted, names))
    return wanted or names[0]


def channels_first(array: np.ndarray, how: Preparation, where: str) -> np.ndarray:
    """Return bytes [n, C, H, W], [n, H, W, C] or, with one channel, [n, H, W] as [n, C, H, W].

    Raises UsageError for another shape.
    """
    channels, height, width = how.size
    sample = array.shape[1:]
    if sample == (channels, height, width):
        return array
    if sample == (height, width, channels):
        return array.transpose(0, 3, 1, 2)
    if sample == (height, width) and channels == 1:
        return array[:, None]
    raise _misfit(array, how, where)


def prepared_floats(array: np.ndarray, how: Preparation, where: str) -> np.ndarray:
    """Return prepared samples [n, *sample]; with one channel, also those in shape [n, H, W].

    Raises UsageError for samples of another shape, or that are not floating point.
    """
    if not how.takes_floats and not np.can_cast(array.dtype, how.dtype):
        hint = f"the model takes `{how.dtype}`"
        raise UsageError(f"samples are `{array.dtype}`", where=where, hint=hint)
    if how.takes_floats and not np.issubdtype(array.dtype, np.floating):
        raise UsageError(
            f"samples are `{array.dtype}`", where=where, hint="give prepared `float32` samples or `uint8` images"
        )
    if array.shape[1:] == how.sample:
        return array
    if len(how.sample) == 3 and how.size[0] == 1 and array.shape[1:] == how.size[1:]:
        return array.reshape(len(array), *how.sample)
    raise _misfit(array, how, where)


def _misfit(array: np.ndarray, how: Preparation, where: str) -> UsageError:
    """Return the error for samples whose shape is not that of the model's input."""
    return UsageError(
        f"samples have shape {list(array.shape[1:])}, the model takes {list(how.sample)}",
        where=where,
        hint=_way_to_fit(array.shape[1:], how),
    )


def _way_to_fit(shape: tuple[int, ...], how: Preparation) -> str:
    """Return the hint for samples of another shape: another order of axes, another number of channels, another size."""
    if len(how.sample) == 3:
        channels, height, width = how.size
        if len(shape) == 3 and sorted(shape) == sorted(how.sample) and shape != how.sample:
            first = shape == (channels, height, width)
            order, name = ((0, 2, 3, 1), "first (NCHW)") if first else ((0, 3, 1, 2), "last (NHWC)")
            if first or shape == (height, width, channels):
                return f"the samples have their channels {name}; `x.transpose{order}` gives the model's order"
        if channels == 3 and shape in ((height, width), (1, height, width)):
            grey = "x[:, None]" if len(shape) == 2 else "x"
            return f"the samples are grey, the model takes colour: `np.repeat({grey}, 3, axis=1)`"
        if channels == 1 and shape in ((3, height, width), (height, width, 3)):
            return "the samples have colour, the model takes grey: average the channels"
    return "resize or transpose them, or give the folder of images, which ttac resizes itself"


def _open_folder(path: Path, how: Preparation) -> Stream:
    folder = ImageFolder(path)
    files, size = folder.files, how.size

    def read(start: int, stop: int) -> np.ndarray:
        return how.prepare(np.stack([read_image(file, size) for file in files[start:stop]]))

    labels, classes = folder.labels(), tuple(folder.classes)
    return Stream(
        count=len(files),
        read=read,
        labels=labels,
        prepared=False,
        names=tuple(folder.names),
        classes=classes,
    )


def read_image(file: Path, size: tuple[int, int, int]) -> np.ndarray:
    """Return the image as uint8 [C, H, W] of `size`.

    Raises UsageError when the file is no image, RuntimeMissingError without Pillow.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise RuntimeMissingError("reading images needs Pillow", hint="pip install pillow") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                return fitted_image(opened, size)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        hint = f"shrink it below {Image.MAX_IMAGE_PIXELS:,} pixels" if Image.MAX_IMAGE_PIXELS else "shrink it"
        raise UsageError("the image states more pixels than are safe to open", where=f"`{file}`", hint=hint) from error
    except (OSError, UnidentifiedImageError) as error:
        raise UsageError(f"cannot read the image: {error}", where=f"`{file}`", hint="remove or repair it") from error


def fitted_image(picture: Image, size: tuple[int, int, int]) -> np.ndarray:
    """Return the picture as uint8 [C, H, W] of `size`: colours converted, short side resized, centre cut out.

    Raises UsageError where `size` has a number of channels that no image has.
    """
    channels, height, width = size
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in modes:
        raise UsageError(f"an image cannot have {channels} channels", hint="give the samples as an array")
    pixels = np.asarray(_fitted(picture.convert(modes[channels]), height, width), np.uint8)
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _fitted(picture: Image, height: int, width: int) -> Image:
    if picture.size == (width, height):
        return picture
    scale = max(width / picture.width, height / picture.height)
    resized = picture.resize((max(width, round(picture.width * scale)), max(height, round(picture.height * scale))))
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))
