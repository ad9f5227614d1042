"""The nets of `tests/golden/surgeon_*`, the settings of SURGEON on them in PyTorch, and their inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
KINDS = ("batch", "group", "layer")
CLASSES, STEPS, BATCH, SIDE = 6, 3, 32, 16
LEAST = 16 * 1024
"""Bytes of a batch below which an input is kept whole."""
SGD = {"optimizer": "sgd", "momentum": 0.9, "nesterov": False}
SETTINGS: dict[str, dict[str, float | str | bool]] = {
    "surgeon": {**SGD, "lr": 0.01, "probe_samples": 4, "select": "topk"},
    "half": {**SGD, "lr": 0.01, "probe_samples": 1, "select": "topk", "keep": 0.5},
    "certain": {**SGD, "lr": 0.01, "probe_samples": 4, "select": "topk", "css": True, "margin": 0.7},
    "blocks": {**SGD, "lr": 0.01, "probe_samples": 4, "select": "blocks"},
    "adam": {"optimizer": "adam", "lr": 1e-3, "probe_samples": 4, "select": "topk"},
    "dropit": {**SGD, "lr": 0.01, "select": "topk", "keep": 0.2},
}
"""Settings of each run; all but `dropit` are the method `surgeon`."""

Arrays = dict[str, np.ndarray]


def method(run: str) -> str:
    return "dropit" if run == "dropit" else "surgeon"


def inputs(seed: int = 7) -> np.ndarray:
    """Return samples [3, 32, 3, 16, 16]; the stream of RandomState never changes."""
    random = np.random.RandomState(seed)
    return random.standard_normal((STEPS, BATCH, 3, SIDE, SIDE)).astype(np.float32)


def model(kind: str) -> Path:
    return GOLDEN / f"surgeon_{kind}.onnx"


def golden(kind: str, run: str) -> Arrays:
    """Return `logits` [3, 32, 6], keep ratios `shares/NAME` [3] of each norm, and `after/NAME` of each parameter.

    The names are those of ttac.
    """
    numbers = load_file(GOLDEN / f"surgeon_{kind}.safetensors")
    return {key.removeprefix(f"{run}/"): value for key, value in numbers.items() if key.startswith(f"{run}/")}
