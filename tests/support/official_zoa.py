"""The runs of `tests/golden/official_zoa.safetensors`: streams with several domains, settings, and ttac's runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

import ttac
from tests.support.adapted import model
from tests.support.whole_models import compiled, state_of

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
STEPS, BATCH, CALIBRATION = 9, 16, 96
KINDS = {"layer": (3, 8, 8), "batch": (3, 32, 32)}
"""Network -> shape of a sample."""
DOMAINS = ((1.0, 0.0), (1.0, 0.0), (1.6, 0.4), (1.6, 0.4), (0.6, -0.5), (1.0, 0.9), (1.0, 0.9), (2.2, 0.0), (1.0, 0.0))
"""Spread and mean of each step's samples."""
SETTINGS: dict[str, dict[str, Any]] = {
    "layer": {
        "lr": 0.005, "weight_decay": 0.4, "perturbation": 0.02, "discrepancy": 3.0, "domains": 3,
        "domain_distance": 0.1, "domain_samples": BATCH, "seed": 3, "guard": "off",
    },
    "batch": {
        "lr": 0.02, "weight_decay": 0.4, "perturbation": 0.01, "discrepancy": 1.0, "domains": 3,
        "domain_distance": 0.2, "domain_samples": BATCH, "seed": 5, "guard": "off",
    },
}  # fmt: skip
"""Settings of each run in ttac."""

Arrays = dict[str, np.ndarray]


def given(kind: str) -> Arrays:
    """Return `x` [9, 16, *sample] and `calibration` [96, *sample]; the stream of RandomState never changes."""
    random, shape = np.random.RandomState(11), KINDS[kind]
    x = random.standard_normal((STEPS, BATCH, *shape))
    spread, middle = (np.array(part).reshape(-1, 1, 1, 1, 1) for part in zip(*DOMAINS, strict=True))
    calibration = random.standard_normal((CALIBRATION, *shape))
    return {"x": (x * spread + middle).astype(np.float32), "calibration": calibration.astype(np.float32)}


def network(kind: str) -> Path:
    """Return the file of the network."""
    return model("layer") if kind == "layer" else GOLDEN / "zoa_batch.onnx"


def official(kind: str) -> Arrays:
    """Return `logits` and `losses` of each step, the number of domains after each, and the state after the last."""
    found = load_file(GOLDEN / "official_zoa.safetensors")
    return {key.removeprefix(f"{kind}/"): value for key, value in found.items() if key.startswith(f"{kind}/")}


def trajectory(kind: str, folder: Path, **choices: Any) -> Arrays:
    """Return the same of ttac's run."""
    arrays = given(kind)
    path = compiled(
        network(kind), folder, method="zoa", batch=BATCH, norms="keep", calibration=arrays["calibration"],
        settings=SETTINGS[kind], **choices,
    )  # fmt: skip
    adapter = ttac.load(path, threads=1)
    logits, losses, domains = [], [], []
    for x in arrays["x"]:
        logits.append(adapter.step(x))
        losses.append(adapter.stats["loss"])
        domains.append(adapter.stats["domains"])
    assert adapter.stats["rejected"] == 0
    found = {"logits": np.stack(logits), "losses": np.array(losses), "domains": np.array(domains)}
    return found | state_of(adapter)
