"""The range of pixels that a distortion keeps to, and the samples that it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ttac.errors import UsageError
from ttac.passes.step_graphs.augmentation import STRAY, image_sizes, refuse_other_than_images
from ttac.passes.step_graphs.context import Subject


def check_images(subject: Subject, *, where: str, hint: str) -> None:
    """Raise UnsupportedError unless the model reads images, UsageError if a sample lies outside the range of pixels.

    `where` names the setting that asks for images, and `hint` the way out.
    """
    x = subject.model.graph.inputs[0]
    refuse_other_than_images(x, subject.head, where=where, hint=hint)
    settings = subject.settings
    pixel_range(settings, image_sizes(x)[1])
    subject.say(f"pixels are taken to go from {settings['black']} to {settings['white']} (`black`, `white`)")
    if subject.samples is not None:
        refuse_values_outside(subject.samples.main, settings)


def pixel_range(settings: Mapping[str, Any], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of a black and of a white pixel for each channel, from settings["black"] and settings["white"].

    Raises UsageError for a text that is no number, for a wrong number of channels, and for an empty range.
    """
    black, white = (_per_channel(str(settings[name]), channels, name) for name in ("black", "white"))
    if not (white > black).all():
        raise UsageError(
            "white is not above black",
            where=f"`--set black={settings['black']} --set white={settings['white']}`",
            hint="give the larger value to `white`, also for a model that reads inverted images",
        )
    return black, white


def _per_channel(text: str, channels: int, name: str) -> np.ndarray:
    try:
        numbers = np.array([float(part) for part in text.split(",")], np.float64)
    except ValueError:
        numbers = np.array([])
    if len(numbers) not in (1, channels) or not np.isfinite(numbers).all():
        several = f", or {channels} with commas between, one for each channel" if channels > 1 else ""
        raise UsageError(
            f"`{text}` is no value of a pixel", where=f"`--set {name}={text}`", hint=f"give one number{several}"
        )
    return np.broadcast_to(numbers, channels)


def refuse_values_outside(samples: np.ndarray, settings: Mapping[str, Any]) -> None:
    """Raise UsageError if calibration images [n, C, H, W] do not lie between black and white."""
    black, white = (bound.reshape(1, -1, 1, 1) for bound in pixel_range(settings, samples.shape[1]))
    slack = STRAY * (white - black)
    if np.mean((samples < black - slack) | (samples > white + slack)) <= STRAY:
        return
    raise UsageError(
        f"the calibration images go from {samples.min():.4g} to {samples.max():.4g}, beyond black and white",
        where=f"`--set black={settings['black']} --set white={settings['white']}`",
        hint="give black and white as the model reads them, one number or one for each channel: for mean m and "
        "deviation s, black=-m/s and white=(1-m)/s",
    )
