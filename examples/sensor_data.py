"""Six-channel motion of a smart watch (BasicMotions) in windows, and typical faults of sensors.

The data is not part of ttac: install the package `aeon` (`pip install aeon`), or give the folder of the two `.ts`
files.  The sensors are an accelerometer and a gyroscope with three axes each at 10 Hz.  There are 40 series for
training and 40 for testing, 10 s each.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

CLASSES = ("standing", "running", "walking", "badminton")
CHANNELS, WINDOW, STRIDE = 6, 64, 6
SEVERITIES = (1, 2, 3)


def folder() -> Path:
    """Return the data set's folder in the installed `aeon`; raises FileNotFoundError without one."""
    spec = importlib.util.find_spec("aeon")  # the search imports neither aeon nor its dependencies
    places = spec.submodule_search_locations if spec else None
    for place in places or ():
        if (path := Path(place) / "datasets" / "data" / "BasicMotions").is_dir():
            return path
    raise FileNotFoundError("BasicMotions is not here: `pip install aeon`, or `--data FOLDER` with its .ts files")


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the series [n, 6, 100] of a `.ts` file and their labels [n]; `:` separates channels and the label."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.split(":") for line in lines if line.strip() and line[0] not in "#@"]
    series = [[[float(value) for value in channel.split(",")] for channel in row[:-1]] for row in rows]
    labels = [CLASSES.index(row[-1].strip().lower()) for row in rows]
    return np.array(series, np.float32), np.array(labels)


def windows(series: np.ndarray, labels: np.ndarray, stride: int = STRIDE) -> tuple[np.ndarray, np.ndarray]:
    """Return all windows [m, 6, 64] of the series, `stride` steps apart, and their labels."""
    starts = range(0, series.shape[2] - WINDOW + 1, stride)
    cut = np.stack([series[:, :, start : start + WINDOW] for start in starts], axis=1)
    return np.ascontiguousarray(cut.reshape(-1, CHANNELS, WINDOW)), np.repeat(labels, len(starts))


def noise(x: np.ndarray, amount: float, random: np.random.Generator) -> np.ndarray:
    """Add white noise with `amount` times the deviation of the channel over all windows."""
    scale = x.std(axis=(0, 2), keepdims=True)
    return x + amount * scale * random.standard_normal(x.shape)


def drift(x: np.ndarray, amount: float, random: np.random.Generator) -> np.ndarray:
    """Add an offset that changes linearly through the window; its ends are up to `amount` deviations of the channel."""
    ends = random.uniform(-amount, amount, (2, *x.shape[:2], 1)) * x.std(axis=(0, 2), keepdims=True)
    position = np.linspace(0, 1, x.shape[2])
    return x + ends[0] * (1 - position) + ends[1] * position


def gain(x: np.ndarray, amount: float, random: np.random.Generator) -> np.ndarray:
    """Multiply all channels of a window by the same factor, 1/`amount` or `amount`."""
    return x * np.exp(random.choice([-1.0, 1.0], (len(x), 1, 1)) * np.log(amount))


def dropout(x: np.ndarray, amount: float, random: np.random.Generator) -> np.ndarray:
    """Replace lost blocks of four steps by the last value in all channels; `amount` is the lost fraction."""
    damaged = x.copy()
    blocks = x.shape[2] // 4
    lost = random.random((len(x), blocks)) < amount
    for row, block in zip(*np.nonzero(lost), strict=True):
        start = 4 * block
        damaged[row, :, start : start + 4] = damaged[row, :, max(start - 1, 0), None]
    return damaged


Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, float, float]]] = {
    "noise": (noise, (0.25, 0.5, 1.0)),
    "drift": (drift, (0.5, 1.0, 2.0)),
    "gain": (gain, (1.5, 2.0, 3.0)),
    "dropout": (dropout, (0.25, 0.5, 0.75)),
}


def corrupted(x: np.ndarray, name: str, severity: int) -> np.ndarray:
    """Return the windows x [n, 6, 64] under a corruption of severity 1 to 3; the numbers are always the same."""
    apply, amounts = CORRUPTIONS[name]
    return apply(x, amounts[severity - 1], np.random.default_rng(severity)).astype(np.float32)
