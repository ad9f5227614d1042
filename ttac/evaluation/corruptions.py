"""The 15 corruptions of ImageNet-C in five severities (Hendrycks and Dietterich, arXiv:1903.12261).

The package `imagecorruptions-imaug` (Apache-2.0) computes them; its constants are meant for images of 224 pixels.  A
corruption of single pixels acts on small images at their size.  A corruption of neighbourhoods acts on images enlarged
to `SIDE`, which are shrunk afterwards.  `docs/evaluation.md` gives the reasons for this package and this size.
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
"""Least number of pixels of an image's shorter side under a corruption of neighbourhoods.

At 28 pixels the blurs destroy a 28-pixel image; at 224 pixels, the size of their constants, they change nothing.
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
"""Names of the corruptions in the order of the papers' streams."""

POINTWISE = frozenset(
    ("gaussian_noise", "shot_noise", "impulse_noise", "brightness", "contrast", "pixelate", "jpeg_compression")
)
"""Corruptions at the size of the image; pixelate and jpeg_compression choose their blocks relative to this size."""

SEEDED = frozenset(("impulse_noise", "glass_blur"))
"""Corruptions that take a seed as an argument; all others draw from NumPy's global generator."""


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """Return the named corruptions, the 15 for `all`; raises UsageError for a name that does not exist."""
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
    """Return name and version of the package; raises RuntimeMissingError where it is not installed."""
    from importlib import metadata

    try:
        return f"{PACKAGE} {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError as error:
        raise RuntimeMissingError(f"corruptions need the package `{PACKAGE}`", hint=INSTALL) from error


def corrupted(images: np.ndarray, name: str, severity: int, seed: int = 0, first: int = 0) -> np.ndarray:
    """Return the corrupted images, uint8 [n, C, H, W] like `images`; C is 1 or 3.

    The random numbers of image i depend on the name, the severity, `seed` and its number `first` + i, and on no other
    image.  A grey image becomes three equal channels, and the first channel of the result is returned.

    Raises:
        UsageError: the images are no bytes, or have neither one nor three channels.
        RuntimeMissingError: the package of the corruptions is not installed.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        problem = f"samples of type `{images.dtype}` and shape {list(images.shape[1:])} cannot be corrupted"
        raise UsageError(problem, hint="corruptions act on uint8 images of one or three channels")
    function = _functions()[name]
    kind = zlib.crc32(f"{name} {severity}".encode())
    damaged = np.empty_like(images)
    with _own_generator():
        for number, image in enumerate(images):
            state = np.random.SeedSequence([seed, kind, first + number]).generate_state(1)
            np.random.seed(state)
            more: dict[str, Any] = {"seed": int(state[0])} if name in SEEDED else {}
            damaged[number] = _damaged(function, image, name, severity, more)
    return damaged


def _damaged(function: Any, image: np.ndarray, name: str, severity: int, more: dict[str, Any]) -> np.ndarray:
    """Return one corrupted image [C, H, W]; it is enlarged first if the corruption acts on neighbourhoods."""
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
    """Restore the state of NumPy's global generator at the end."""
    before = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(before)
