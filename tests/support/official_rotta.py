"""The run of `tests/golden/official_rotta.safetensors`: a stream with long runs of alike samples, and ttac's run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import ttac
from tests.support.surgeon_case import GOLDEN, model
from tests.support.whole_models import compiled, state_of

STEPS, BATCH = 8, 16
SETTINGS: dict[str, Any] = {
    "lr": 0.02, "optimizer": "sgd", "momentum": 0.9, "teacher_decay": 0.9, "statistics_momentum": 0.2, "capacity": 12,
    "interval": 16, "age_weight": 1.0, "doubt_weight": 1.0, "seed": 6, "black": "-4", "white": "4",
}  # fmt: skip
"""Settings of the run in ttac."""

Arrays = dict[str, np.ndarray]


def stream() -> np.ndarray:
    """Return eight batches [8, 16, 3, 16, 16]: noise beside a pattern that stays for half a batch."""
    random = np.random.RandomState(21)
    noise = 0.6 * random.standard_normal((STEPS, BATCH, 3, 16, 16))
    patterns = random.standard_normal((STEPS, 2, 1, 3, 16, 16)).repeat(BATCH // 2, axis=2)
    return (noise + 0.8 * patterns.reshape(noise.shape)).astype(np.float32)


def official() -> Arrays:
    """Return `logits` [8, 16, 6], the number of samples in the memory after each step, and the state after the last."""
    return load_file(GOLDEN / "official_rotta.safetensors")


def trajectory(folder: Path, batch: int = BATCH, **settings: Any) -> Arrays:
    """Return the same of ttac's run."""
    choices = {**SETTINGS, **settings}
    path = compiled(model("batch"), folder, method="rotta", batch=batch, norms="keep", settings=choices)
    adapter, logits, filled = ttac.load(path, threads=1), [], []
    for x in stream():
        logits.append(np.concatenate([adapter.step(x[i : i + batch]) for i in range(0, BATCH, batch)]))
        filled.append(adapter.stats["memory"])
    assert adapter.stats["rejected"] == 0
    return {"logits": np.stack(logits), "filled": np.array(filled), **state_of(adapter)}
