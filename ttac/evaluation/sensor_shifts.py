"""Shifts of samples that are no images, as field conditions cause them in sensors, in five severities.

Each shift acts on float samples [n, ...] in units of the deviation of a channel.  Channels lie on axis 1 of samples
with three axes or more; otherwise each feature is a channel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Size of a shift by severity 1 to 5, in deviations of the channel, or as a share of the values."""


def shifted(x: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """Return the samples under the shift `name` of `SHIFTS`, float32 of the shape of `x`; equal at every call."""
    strength = STRENGTHS[severity - 1]
    generator = np.random.default_rng([seed, severity, sorted(SHIFTS).index(name)])
    return SHIFTS[name](np.asarray(x, np.float32), strength, generator).astype(np.float32)


def _noise(x: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Return the samples with white noise."""
    noisy: np.ndarray = x + strength * _deviation(x) * generator.standard_normal(x.shape, np.float32)
    return noisy


def _offset(x: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Return the samples with a constant added to each channel, upwards or downwards."""
    deviation = _deviation(x)
    signs = generator.choice(np.array([-1, 1], np.float32), deviation.shape)
    moved: np.ndarray = x + strength * deviation * signs
    return moved


def _gain(x: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Return the samples with their distance from the mean of the channel enlarged by up to a factor of 2."""
    mean = _mean(x)
    wider: np.ndarray = mean + (1 + strength) * (x - mean)
    return wider


def _lost(x: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Return the samples with up to half of the values replaced by the mean of the channel."""
    return np.where(generator.random(x.shape) < strength / 2, _mean(x), x)


def _smoothed(x: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Return the samples averaged over windows of 3 to 11 neighbours along the last axis."""
    reach = min(round(5 * strength), x.shape[-1] - 1)
    edges = [(0, 0)] * (x.ndim - 1) + [(reach, reach)]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, edges, mode="edge"), 2 * reach + 1, axis=-1)
    averaged: np.ndarray = windows.mean(axis=-1)
    return averaged


def _shared(x: np.ndarray) -> tuple[int, ...]:
    """Return the axes that share a mean and a deviation."""
    return (0,) if x.ndim == 2 else (0, *range(2, x.ndim))


def _mean(x: np.ndarray) -> np.ndarray:
    mean: np.ndarray = x.mean(axis=_shared(x), keepdims=True)
    return mean


def _deviation(x: np.ndarray) -> np.ndarray:
    deviation: np.ndarray = x.std(axis=_shared(x), keepdims=True)
    return deviation


SHIFTS: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "noise": _noise,
    "offset": _offset,
    "gain": _gain,
    "lost_values": _lost,
    "smoothing": _smoothed,
}
"""The shifts by name."""
