"""The runs of `tests/golden/consistency.safetensors`: CR's images, settings, random numbers, and single distortions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tests.support.surgeon_case import BATCH, SGD, SIDE

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "consistency.safetensors"
STEPS = 5
BLACK, WHITE = (-2.1, -2.0, -1.8), (2.2, 2.4, 2.6)
RANGE = {"black": ",".join(map(str, BLACK)), "white": ",".join(map(str, WHITE))}
PROBED = {"select": "topk", "probe_samples": 4, "cr": True, **RANGE}
SETTINGS: dict[str, dict[str, float | str | bool]] = {
    "plain": {**SGD, **PROBED, "lr": 0.01},
    "strong": {**SGD, **PROBED, "lr": 0.01, "cr_weight": 1.0, "seed": 5},
    "certain": {**SGD, **PROBED, "lr": 0.005, "cr_weight": 1.0, "css": True, "margin": 0.5},
    "adam": {**PROBED, "optimizer": "adam", "lr": 1e-3},
}
"""Settings of each run of `surgeon`."""

NEUTRAL = {
    "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "gamma": 1.0, "angle": 0.0, "right": 0.0,
    "down": 0.0, "scale": 1.0, "blur": 0.001, "mirror": 1.0,
}  # fmt: skip
"""Distortions that change nothing, with the names and units of `ttac.passes.step_graphs.augmentation.DRAWN`."""
STAGES: dict[str, dict[str, float]] = {
    "darker": {"brightness": 0.6},
    "brighter": {"brightness": 1.4},
    "contrast": {"contrast": 0.7},
    "more contrast": {"contrast": 1.3},
    "greyer": {"saturation": 0.5},
    "more colour": {"saturation": 1.5},
    "hue": {"hue": 0.06},
    "hue back": {"hue": -0.06},
    "gamma": {"gamma": 0.7},
    "rotated": {"angle": 15.0},
    "rotated back": {"angle": -9.0},
    "moved": {"right": 0.11, "down": -0.09},
    "larger": {"scale": 1.1},
    "smaller": {"scale": 0.9},
    "mirrored": {"mirror": -0.3},
    "blurred": {"blur": 0.5},
    "affine": {"angle": 11.0, "right": -0.12, "down": 0.1, "scale": 0.93, "mirror": -1.0, "blur": 0.4},
    "all": {
        "brightness": 1.2, "contrast": 1.25, "saturation": 0.6, "hue": 0.05, "gamma": 0.8, "angle": -12.0, "right": 0.1,
        "down": 0.05, "scale": 1.07, "blur": 0.45, "mirror": -0.5,
    },
}  # fmt: skip
"""Distortions without noise; a name that is missing has its neutral value."""

Arrays = dict[str, np.ndarray]


def numbers(state: list[int]) -> Iterator[float]:
    """Yield the numbers of L'Ecuyer's generator, as published; `state` advances."""
    while True:
        state[0] = 40014 * state[0] % 2147483563
        state[1] = 40692 * state[1] % 2147483399
        yield ((state[0] - state[1]) % 2147483562 + 1) / 2147483563


def initial(seed: int) -> list[int]:
    first, second = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    return [1 + first % 2147483562, 1 + second % 2147483398]


def normals(stream: Iterator[float], shape: tuple[int, ...]) -> np.ndarray:
    """Return normal numbers by Box and Muller, row by row of the last axis: the radii of a row, then its angles."""
    half = -(-shape[-1] // 2)
    rows = int(np.prod(shape[:-1]))
    uniform = np.array([next(stream) for _ in range(rows * 2 * half)]).reshape(rows, 2, half)
    radius, angle = np.sqrt(-2 * np.log(uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)[:, : shape[-1]].reshape(shape)


def drawn(stream: Iterator[float]) -> dict[str, float]:
    """Draw numbers from CoTTA's ranges, in the order of `ttac.passes.step_graphs.augmentation.DRAWN`."""
    ranges = {
        "brightness": (0.6, 1.4), "contrast": (0.7, 1.3), "saturation": (0.5, 1.5), "hue": (-0.06, 0.06),
        "gamma": (0.7, 1.3), "angle": (-15, 15), "right": (-0.125, 0.125), "down": (-0.125, 0.125),
        "scale": (0.9, 1.1), "blur": (0.001, 0.5), "mirror": (-1, 1),
    }  # fmt: skip
    return {name: low + (high - low) * next(stream) for name, (low, high) in ranges.items()}


def pictures(channels: int) -> np.ndarray:
    """Return images [2, channels, 16, 20] from 0 to 1 with some pixels black, white or without colour."""
    random = np.random.RandomState(channels)
    images = random.random_sample((2, channels, 16, 20))
    images[:, :, 3, :4], images[:, :, 7, 5:9] = 0.0, 1.0
    images[0, :, 10:14, 8:12] = 0.4
    return images.astype(np.float32)


def inputs() -> np.ndarray:
    """Return images [5, 32, 3, 16, 16] between black and white: coarse pictures with fine noise."""
    random = np.random.RandomState(11)
    coarse = random.random_sample((STEPS, BATCH, 3, 4, 4)).repeat(SIDE // 4, -1).repeat(SIDE // 4, -2)
    unit = 0.7 * coarse + 0.3 * random.random_sample((STEPS, BATCH, 3, SIDE, SIDE))
    black, white = (np.array(bound).reshape(3, 1, 1) for bound in (BLACK, WHITE))
    return (black + unit * (white - black)).astype(np.float32)


def golden(run: str) -> Arrays:
    """Return `logits` [5, 32, 6] and `after/NAME` of each parameter; for "stages", NAME/CHANNELS of each stage."""
    return {k.removeprefix(f"{run}/"): v for k, v in load_file(GOLDEN).items() if k.startswith(f"{run}/")}
