"""The corruptions of the shipped stream, made by the corrupt-tta package (ImageNet-C's, arXiv:1903.12261)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np

PACKAGE = "corrupt-tta"


@dataclass(frozen=True)
class Corruption:
    """One kind of damage.

    The package is made for 224 pixels, so corruptions of neighbourhoods get enlarged images.
    """

    name: str
    severity: Literal[1, 2, 3, 4, 5]
    scale: int  # the image is enlarged by this factor, corrupted and shrunk again


CORRUPTIONS = (
    Corruption("gaussian_noise", 2, scale=1),
    Corruption("shot_noise", 5, scale=1),
    Corruption("motion_blur", 5, scale=4),
    Corruption("snow", 3, scale=4),
    Corruption("brightness", 5, scale=1),
    Corruption("contrast", 1, scale=1),
    Corruption("pixelate", 5, scale=1),
)


def described() -> str:
    """Return the package of the corruptions, its installed version and their settings, for readers of the data file."""
    listed = ", ".join(f"{each.name} severity {each.severity} at {28 * each.scale} pixels" for each in CORRUPTIONS)
    return f"{PACKAGE} {version(PACKAGE)} (MIT licence): {listed}"


def corrupted(images: np.ndarray, corruption: Corruption) -> np.ndarray:
    """Return the corrupted images, uint8 [N, 1, 28, 28]; the numbers are always the same.

    Raises ImportError when corrupt-tta is missing.
    """
    np.random.seed(0)  # the package draws from NumPy's global generator
    return np.stack([_corrupt(image[0], corruption)[None] for image in images])


def _corrupt(image: np.ndarray, corruption: Corruption) -> np.ndarray:
    """Corrupt one grey image with the package, which takes three equal channels, and return the first channel."""
    import cv2  # type: ignore[import-not-found, unused-ignore]
    from corrupt_tta import corrupt  # type: ignore[import-not-found, import-untyped, unused-ignore]

    height, width = image.shape
    size = (width * corruption.scale, height * corruption.scale)
    large = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    damaged = corrupt(np.repeat(large[..., None], 3, axis=2), corruption.severity, corruption.name)
    small = cv2.resize(np.float32(damaged[..., 0]), (width, height), interpolation=cv2.INTER_AREA)
    rounded: np.ndarray = np.clip(np.round(small), 0, 255)
    return rounded.astype(np.uint8)
