"""The 15 corruptions of ImageNet-C in five severities (Hendrycks and Dietterich, arXiv:1903.12261).

Made by the package `imagecorruptions-imaug` (Apache-2.0), whose constants are meant for images of 224 pixels.  What
acts on single pixels is applied to small images as they are; what acts on neighbourhoods is applied to images enlarged
to `SIDE` and shrunk again.  `docs/evaluation.md` says why this package and this size.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from ttac.errors import RuntimeMissingError, UsageError
from ttac.suggest import did_you_mean

PACKAGE, MODULE = "imagecorruptions-imaug", "imagecorruptions"
INSTALL = "`pip install 'ttac[eval]'`"
SEVERITIES = (1, 2, 3, 4, 5)
SIDE = 112
"""Pixels of the shorter side that images have at least while something acts on their neighbourhoods.

At 28 pixels the blurs leave nothing of a 28-pixel image; at 224, where their constants come from, they leave all of it.
"""

NAMES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""In the order that the papers stream them."""

POINTWISE = frozenset(
    ("gaussian_noise", "shot_noise", "impulse_noise", "brightness", "contrast", "pixelate", "jpeg_compression")
)
"""Applied at the images' own size; pixelate and jpeg_compression choose their blocks relative to that."""

SEEDED = frozenset(("impulse_noise", "glass_blur"))
"""Take their seed as an argument; all others draw from NumPy's global generator."""


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The corruptions asked for, `all` for the 15; raises UsageError for a name that does not exist."""
    if list(names) == ["all"]:
        return NAMES
    for name in names:
        if name not in NAMES:
            hint = did_you_mean(name, (*NAMES, "all"))
            raise UsageError(f"there is no corruption `{name}`", where="`--corruptions`", hint=hint)
    if len(set(names)) != len(names):
        raise UsageError("a corruption is named twice", where="`--corruptions`", hint="name each one once")
    return tuple(names)


def version() -> str:
    """Name and version of the package; raises RuntimeMissingError where it is not installed."""
    from importlib import metadata

    try:
        return f"{PACKAGE} {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError as error:
        raise RuntimeMissingError(f"corruptions need the package `{PACKAGE}`", hint=INSTALL) from error


def corrupted(images: np.ndarray, name: str, severity: int, seed: int = 0, first: int = 0) -> np.ndarray:
    """uint8 [n, C, H, W] -> the same shape, corrupted; C is 1 or 3.

    Image i is corrupted alike whatever else is in the array: its random numbers come from the name, the severity,
    `seed` and its number `first` + i.  A grey image goes through as three equal channels; the first one comes back.

    Raises:
        UsageError: the images are no bytes, or have neither one nor three channels.
        RuntimeMissingError: the package of the corruptions is not installed.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        what = f"samples of type `{images.dtype}` and shape {list(images.shape[1:])} cannot be corrupted"
        raise UsageError(what, hint="corruptions act on uint8 images of one or three channels")
    function = _functions()[name]
    kind = zlib.crc32(f"{name} {severity}".encode())
    made = np.empty_like(images)
    with _own_generator():
        for number, image in enumerate(images):
            state = np.random.SeedSequence([seed, kind, first + number]).generate_state(1)
            np.random.seed(state)
            more: dict[str, Any] = {"seed": int(state[0])} if name in SEEDED else {}
            made[number] = _through(function, image, name, severity, more)
    return made


def _through(function: Any, image: np.ndarray, name: str, severity: int, more: dict[str, Any]) -> np.ndarray:
    """One image [C, H, W] through one corruption, enlarged if the corruption acts on neighbourhoods."""
    from PIL import Image

    channels, height, width = image.shape
    colours = np.repeat(image, 3, axis=0) if channels == 1 else image
    picture = Image.fromarray(np.ascontiguousarray(colours.transpose(1, 2, 0)))
    factor = 1 if name in POINTWISE else max(1, -(-SIDE // min(height, width)))
    if factor > 1:
        picture = picture.resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    pixels = np.round(np.asarray(function(picture, severity, **more), np.float32))
    damaged = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if factor > 1:
        damaged = damaged.resize((width, height), Image.Resampling.BOX)
    return np.asarray(damaged).transpose(2, 0, 1)[:channels]


@cache
def _functions() -> dict[str, Any]:
    version()
    try:
        from imagecorruptions import corruption_dict
    except ImportError as error:
        raise RuntimeMissingError(f"`{PACKAGE}` cannot be imported: {error}", hint=INSTALL) from error
    return dict(corruption_dict)


@contextmanager
def _own_generator() -> Iterator[None]:
    """Give NumPy's global generator back as it was."""
    before = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(before)
