"""The two small nets of `tests/golden/adapted_*`, the PyTorch runs of methods on them, and the same runs in ttac."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

import ttac

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
KINDS = ("group", "layer")
CLASSES, STEPS, BATCH, CALIBRATION = 6, 5, 8, 96
SETTINGS: dict[str, dict[str, float]] = {
    "tent": {"lr": 0.02},
    "eta": {"lr": 0.05, "margin": 0.6, "redundancy": 0.7},
    "eata": {"lr": 0.05, "margin": 0.6, "redundancy": 0.7, "fisher": 20.0},
    "sar": {"lr": 0.05, "margin": 0.6},
    "recovering": {"lr": 0.05, "margin": 0.6, "reset_threshold": 0.55 * math.log(1000) / math.log(6)},
}
"""Settings of each run; `eta` is `eata` without calibration, `recovering` is `sar`."""
UNTRAINED = {
    "group": ("4.norm1", "4.norm2", "4.skip.1"),
    "layer": ("blocks.3.norm1", "blocks.3.norm2", "norm"),
}
METHODS = {"tent": "tent", "eta": "eata", "eata": "eata", "sar": "sar", "recovering": "sar"}

Arrays = dict[str, np.ndarray]


def inputs(seed: int) -> Arrays:
    """Return `x` [5, 8, 3, 8, 8] and `calibration` [96, 3, 8, 8]; the stream of RandomState never changes."""
    random = np.random.RandomState(seed)
    shapes = {"x": (STEPS, BATCH, 3, 8, 8), "calibration": (CALIBRATION, 3, 8, 8)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def model(kind: str) -> Path:
    return GOLDEN / f"adapted_{kind}.onnx"


def seed_of(kind: str) -> int:
    with safe_open(GOLDEN / f"adapted_{kind}.safetensors", "np") as file:
        return int(file.metadata()["seed"])


def golden(kind: str, run: str) -> Arrays:
    """Return the numbers of PyTorch: `logits` [5, 8, 6], and parameters after the last step under ttac's names."""
    numbers = load_file(GOLDEN / f"adapted_{kind}.safetensors")
    mine = {key.removeprefix(f"{run}/"): value for key, value in numbers.items() if key.startswith(f"{run}/")}
    return {key.removeprefix("after/").replace(".weight", ".scale"): value for key, value in mine.items()}


def compiled(kind: str, run: str, folder: Path, **settings: float | str | bool) -> Path:
    """Compile the bundle of one run; PyTorch's runs have no guard."""
    optimizer = {"optimizer": "sgd"} if METHODS[run] == "tent" else {}
    path = folder / f"{kind}-{run}.ttac"
    calibration = inputs(seed_of(kind))["calibration"] if run == "eata" else None
    ttac.compile(
        model(kind), method=METHODS[run], batch=BATCH, output=path, calibration=calibration, norms="keep",
        settings={"guard": "off", **optimizer, **SETTINGS[run], **settings},
    )  # fmt: skip
    return path


def state_of(adapter: ttac.Adapter, folder: Path) -> Arrays:
    """Return all state tensors by name."""
    adapter.save(folder / "state.safetensors")
    return load_file(folder / "state.safetensors")


def worst(kind: str, run: str, folder: Path) -> float:
    """Return the largest difference from PyTorch of the logits of every step and of the parameters after the last."""
    adapter, expected = ttac.load(compiled(kind, run, folder), threads=1), golden(kind, run)
    logits = [adapter.step(x) for x in inputs(seed_of(kind))["x"]]
    assert adapter.stats["rejected"] == 0
    state = state_of(adapter, folder)
    parameters = set(expected) - {"logits", "recoveries"}
    assert parameters == {name for name in state if name.endswith((".scale", ".bias"))}
    apart = [float(np.abs(state[name] - expected[name]).max()) for name in parameters]
    return max(*apart, float(np.abs(np.stack(logits) - expected["logits"]).max()))
