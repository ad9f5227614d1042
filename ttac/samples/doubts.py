"""Doubts about samples that a model can take but that hardly are those it was trained on."""

from __future__ import annotations

import numpy as np

from ttac.samples.images import Preparation

SEEN = 32
"""Number of samples that are looked at."""
UNCORRELATED = 0.1
"""Correlation of neighbouring pixels below which samples look like noise; photographs have 0.8 to 0.99."""
SMALLEST_SIDE = 8
"""Pixels of the side below which the correlation says nothing."""


def doubts(samples: np.ndarray, how: Preparation) -> list[str]:
    """Return a sentence for each doubt about prepared samples [n, *sample]; empty for plausible samples."""
    seen = np.asarray(samples[:SEEN])
    found = []
    if _looks_like_bytes(seen):
        found.append("the samples hold whole numbers up to 255 as floats; ttac prepares images that are uint8 only")
    if _looks_like_noise(seen, how):
        found.append("the samples look like noise: their neighbouring pixels are not correlated")
    return found


def _looks_like_bytes(samples: np.ndarray) -> bool:
    """Whether floats hold whole numbers from 0 to at most 255, with large ones among them."""
    if samples.dtype.kind != "f" or not samples.size:
        return False
    low, high = samples.min(), samples.max()
    return bool(low >= 0 and 64 < high <= 255 and (samples == np.round(samples)).all())


def _looks_like_noise(samples: np.ndarray, how: Preparation) -> bool:
    """Whether images are noise: the correlation of a pixel with its right neighbour, over all samples and channels."""
    if len(how.sample) != 3 or samples.dtype.kind != "f":
        return False
    channels, height, width = how.size
    if channels not in (1, 3) or min(height, width) < SMALLEST_SIDE:
        return False
    images = samples if how.layout == "NCHW" else samples.transpose(0, 3, 1, 2)
    centred = images - images.mean(axis=(2, 3), keepdims=True)
    variance = float(np.square(centred, dtype=np.float64).mean())
    product = float((centred[..., 1:] * centred[..., :-1]).mean(dtype=np.float64))
    return variance > 0 and product < UNCORRELATED * variance
