"""Golden runs of the published TTT: settings, images, and the arrays of each run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MODEL = GOLDEN / "rotation_group.onnx"
SIDE, COPIES = 8, 4
COMMON: dict[str, Any] = {
    "lr": 0.05, "copies": COPIES, "shift": 1, "black": "-1", "white": "1", "seed": 3, "guard": "off",
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "online": {**COMMON, "iterations": 2},
    "standard": {**COMMON, "iterations": 3, "fresh": True},
    "gate": {**COMMON, "threshold": 0.2065},
}
"""Settings of each run of six images, one a step."""


def images() -> np.ndarray:
    """Return six images [6, 3, 8, 8] from -1 to 1."""
    return np.random.RandomState(0).uniform(-1, 1, (6, 3, SIDE, SIDE)).astype(np.float32)


def official(run: str) -> dict[str, np.ndarray]:
    """Return `logits` [6, 6] of each image after its update, and the parameters after the last by ttac's names."""
    numbers = load_file(GOLDEN / "official_ttt.safetensors")
    return {key.removeprefix(f"{run}/"): value for key, value in numbers.items() if key.startswith(f"{run}/")}
