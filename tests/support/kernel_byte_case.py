"""A random case of ByteMoments and ByteNorm, or of their signed kin, and the same numbers by NumPy in float64."""

from __future__ import annotations

import numpy as np

from tests.support.kernel_norm_case import agree
from tests.support.kernel_session import run

CHANNELS = [1, 3, 8, 15, 16, 17, 24, 40, 96]
SIDES = [1, 2, 5, 7, 33]
HALF = 1e-3
"""Distance of a number from the middle between two bytes, in steps, below which float32 may round either way."""


def check_bytes(seed: int) -> None:
    """Run a case; AssertionError where a moment is off, or a byte that no tie explains."""
    random = np.random.default_rng(seed)
    dtype, prefix = (np.uint8, "") if random.random() < 0.5 else (np.int8, "Signed")
    shape = tuple(int(random.choice(sizes)) for sizes in ([1, 2, 5], SIDES, SIDES, CHANNELS))
    limits = np.iinfo(dtype)
    low, high = sorted(int(edge) for edge in random.integers(limits.min, limits.max + 1, 2))
    x = random.integers(low, high + 1, shape).astype(dtype)
    _check_moments(x, prefix)
    _check_norm(x, prefix, random)


def _check_moments(x: np.ndarray, prefix: str) -> None:
    found = run(f"{prefix}ByteMoments", {"x": x}, ["mean", "square"], {})
    wide = x.astype(np.float64)
    agree("mean", found["mean"], wide.mean((1, 2)), np.abs(wide).mean((1, 2)))
    agree("square", found["square"], (wide**2).mean((1, 2)), (wide**2).mean((1, 2)))


def _check_norm(x: np.ndarray, prefix: str, random: np.random.Generator) -> None:
    limits, channels = np.iinfo(x.dtype), x.shape[-1]
    low, high = sorted(int(edge) for edge in random.integers(limits.min, limits.max + 1, 2))
    step, zero = float(np.float32(random.uniform(0.01, 0.1))), int(random.integers(limits.min, limits.max + 1))
    scale, bias = (random.standard_normal(channels).astype(np.float32) for _ in range(2))
    mean = random.uniform(limits.min, limits.max, channels).astype(np.float32)
    variance = random.uniform(0.0, 3000.0, channels).astype(np.float32)
    attributes = {"epsilon": 1e-2, "step": step, "zero": zero, "low": low, "high": high}
    fed = {"x": x, "scale": scale, "bias": bias, "mean": mean, "variance": variance}
    found = run(f"{prefix}ByteNorm", fed, ["values" if prefix else "bits"], attributes).popitem()[1]
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + np.float32(1e-2))
    y = ((x.astype(np.float64) - mean) * factor + bias) / step + zero
    nearest = np.clip(np.rint(y), low, high)
    tie = np.abs(np.abs(y - np.floor(y)) - 0.5) < HALF
    apart = np.abs(found.astype(np.float64) - nearest)
    assert found.dtype == x.dtype and (apart[~tie] == 0).all() and (apart <= 1).all(), "bytes"
