"""Golden runs of the published code of methods, on the networks of `tests/golden/adapted_*`, and ttac's runs of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import ttac
from tests.support.adapted import BATCH, GOLDEN, inputs, model, seed_of
from tests.support.whole_models import compiled, state_of

Arrays = dict[str, np.ndarray]


def official(run: str, kind: str) -> Arrays:
    """Return `logits` [5, 8, 6] of each step, and the state after the last as `after/NAME`."""
    numbers = load_file(GOLDEN / "official_methods.safetensors")
    prefix = f"{run}/{kind}/"
    return {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}


def trajectory(kind: str, folder: Path, method: str, settings: dict[str, Any], **choices: Any) -> Arrays:
    """Return the logits of each step of `method`, and the state after the last step by name."""
    bundle = compiled(model(kind), folder, method=method, batch=BATCH, norms="keep", settings=settings, **choices)
    adapter = ttac.load(bundle, threads=1)
    logits = np.stack([adapter.step(x) for x in inputs(seed_of(kind))["x"]])
    assert adapter.stats["rejected"] == 0
    return {"logits": logits, **state_of(adapter)}
