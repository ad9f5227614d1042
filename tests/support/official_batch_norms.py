"""Golden runs of published statistics of batch norms, and ttac's runs of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import ttac
from tests.support.consistency_case import initial, numbers
from tests.support.surgeon_case import BATCH, inputs, model
from tests.support.whole_models import compiled, state_of

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "official_batch_norms.safetensors"
SETTINGS: dict[str, dict[str, Any]] = {
    "delta": {
        "statistics": "renorm", "statistics_momentum": 0.2, "lr": 0.02, "balance": True, "balance_decay": 0.8,
        "margin": 0.5, "redundancy": 1.0, "fisher": 0.0, "guard": "off",
    },
    "mecta": {"lr": 0.02, "least_drift": 0.07, "keep": 1.0, "guard": "off"},
    "mecta_channels": {"lr": 0.02, "least_drift": 0.07, "keep": 0.3, "seed": 5, "guard": "off"},
    "roid": {"lr": 0.002, "optimizer": "sgd", "black": "-6", "white": "6", "seed": 2, "guard": "off"},
}  # fmt: skip
"""Settings of each run in ttac."""
METHODS = {"delta": "eata", "mecta_channels": "mecta"}
STRETCH = 65536
"""Random numbers of a norm in a step."""

Arrays = dict[str, np.ndarray]


def stream() -> np.ndarray:
    """Return six batches [6, 32, 3, 16, 16] whose spread drifts and stays."""
    spread = np.array([1.0, 1.0, 1.3, 1.3, 1.8, 1.0], np.float32).reshape(6, 1, 1, 1, 1)
    return np.concatenate([inputs(7), inputs(8)]) * spread


def channel_order(seed: int, step: int, norm: int, norms: int, channels: int) -> np.ndarray:
    """Return the channels of a norm by their random numbers, ascending; `step` counts the earlier updates.

    A step drops the first channels.
    """
    skipped, state = (step * norms + norm) * STRETCH, initial(seed)
    state = [
        s * pow(a, skipped, m) % m for s, a, m in zip(state, (40014, 40692), (2147483563, 2147483399), strict=True)
    ]
    stream = numbers(state)
    return np.argsort([next(stream) for _ in range(channels)])


def official(run: str) -> Arrays:
    """Return `logits` [6, 32, 6] of each step, and the state after the last by ttac's names."""
    found = {k.removeprefix(f"{run}/"): v for k, v in load_file(GOLDEN).items() if k.startswith(f"{run}/")}
    return {key.removeprefix("after/"): value for key, value in found.items()}


def trajectory(run: str, folder: Path, **choices: Any) -> Arrays:
    """Return the logits of each step of ttac's run, and the state after the last step."""
    method, settings = METHODS.get(run, run), SETTINGS[run]
    adapter = ttac.load(
        compiled(model("batch"), folder, method=method, batch=BATCH, settings=settings, **choices), threads=1
    )
    logits, active = [], []
    for x in stream():
        logits.append(adapter.step(x))
        active.append(adapter.stats.get("active", 1.0))
    assert adapter.stats["rejected"] == 0
    return {"logits": np.stack(logits), "active": np.array(active), **state_of(adapter)}


def worst(run: str, folder: Path, **choices: Any) -> dict[str, float]:
    """Return the largest difference of each published array from ttac's."""
    found, expected = trajectory(run, folder, **choices), official(run)
    if "active" in expected:
        expected["active"] = expected["active"].mean(1)
    return {name: float(np.abs(found[name] - value).max()) for name, value in expected.items()}
