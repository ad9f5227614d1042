"""Golden runs of a published EcoTTA: settings, samples, and the arrays of each run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.support.surgeon_case import CLASSES, inputs

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "official_ecotta.safetensors"
COMMON: dict[str, Any] = {"margin": 0.25, "nearness": 0.25, "lr": 0.005, "seed": 2, "warmup_epochs": 0, "guard": "off"}
SETTINGS: dict[str, dict[str, Any]] = {"code": COMMON, "joint": {**COMMON, "joint": True}}
"""Settings of each run of six steps, without a warm-up."""
WARMUP: dict[str, Any] = {"seed": 2, "warmup_epochs": 3, "warmup_lr": 0.05, "guard": "off"}


def calibration() -> np.ndarray:
    """Return 192 samples, three batches of the warm-up."""
    return np.concatenate([*inputs(5), *inputs(6)])


def labels() -> np.ndarray:
    return np.random.RandomState(0).randint(0, CLASSES, len(calibration())).astype(np.int64)


def official(run: str) -> dict[str, np.ndarray]:
    """Return the arrays of a run, the state by ttac's names."""
    found = {k.removeprefix(f"{run}/"): v for k, v in load_file(GOLDEN).items() if k.startswith(f"{run}/")}
    return {key.removeprefix("after/"): value for key, value in found.items()}
