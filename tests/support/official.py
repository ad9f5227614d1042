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

SETTINGS: dict[str, dict[str, Any]] = {
    "neo": {},
    "neo-newest": {"newest": 0.1},
    "t3a": {"supports": 4},
    "shot-im": {"lr": 0.02, "optimizer": "sgd"},
    "tent-come": {"lr": 0.02, "optimizer": "sgd", "come": True},
    "eata-come": {"lr": 0.02, "come": True, "margin": 0.9, "redundancy": 0.7, "fisher": 0.0},
    "delta": {
        "lr": 0.05, "balance": True, "balance_decay": 0.8, "margin": 0.5, "redundancy": 1.0, "fisher": 0.0,
    },
    "cotta": {
        "lr": 0.05, "optimizer": "sgd", "confidence": 0.6, "restored": 0.1, "teacher_decay": 0.9, "seed": 3,
        "black": "-3", "white": "3", "guard": "off",
    },
    "cotta-all": {
        "lr": 0.02, "optimizer": "sgd", "confidence": 0.0, "restored": 0.05, "teacher_decay": 0.8, "seed": 4,
        "black": "-3", "white": "3", "guard": "off",
    },
    "cotta-imagenet": {
        "lr": 0.05, "optimizer": "sgd", "nesterov": True, "symmetric": True, "confidence": 0.1, "restored": 0.001,
        "black": "-3", "white": "3", "guard": "off",
    },
    "law": {"lr": 0.01, "exponent": 1.0, "agreement": 0.06, "black": "-3", "white": "3", "seed": 2, "guard": "off"},
    "law-exponent": {
        "lr": 0.02, "exponent": 0.6, "agreement": 0.06, "black": "-3", "white": "3", "seed": 5, "guard": "off",
    },
    "roid": {"lr": 0.0005, "optimizer": "sgd", "black": "-3", "white": "3", "seed": 2, "guard": "off"},
    "zerosiam": {"lr": 0.005, "predictor_lr": 0.02},
    "sight": {
        "prototype_rate": 0.05, "source_pull": 0.01, "surprise": 1.0, "habit_rate": 0.05, "temperature": 0.2,
    },
    "foa": {"prompts": 6, "discrepancy": 20.0, "seed": 7},
    "deyo": {"lr": 0.02, "margin": 0.8, "shape_margin": 0.05, "exclude_last_stage": False, "seed": 3},
}  # fmt: skip
"""Settings of each run in ttac."""
METHODS = {
    "neo-newest": "neo", "tent-come": "tent", "eata-come": "eata", "delta": "eata", "cotta-all": "cotta",
    "cotta-imagenet": "cotta", "law-exponent": "law",
}  # fmt: skip
"""Methods of the runs with other names."""


def official(run: str, kind: str) -> Arrays:
    """Return `logits` [5, 8, 6] of each step, and the state after the last as `after/NAME`."""
    files = ("official_methods", "official_grafts", "official_law", "official_foa")
    numbers = {key: value for file in files for key, value in load_file(GOLDEN / f"{file}.safetensors").items()}
    prefix = f"{run}/{kind}/"
    return {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}


def trajectory(run: str, kind: str, folder: Path, *, batch: int = BATCH, **choices: Any) -> Arrays:
    """Return the logits of each step of ttac's run, and the state after the last step by name."""
    method, settings = METHODS.get(run, run), SETTINGS[run]
    bundle = compiled(model(kind), folder, method=method, batch=batch, norms="keep", settings=settings, **choices)
    adapter = ttac.load(bundle, threads=1)
    logits, unsure = [], []
    for x in inputs(seed_of(kind))["x"]:
        logits.append(np.concatenate([adapter.step(x[i : i + batch]) for i in range(0, BATCH, batch)]))
        unsure.append(adapter.stats.get("unsure", 0.0))
    assert adapter.stats["rejected"] == 0
    return {"logits": np.stack(logits), "unsure": np.array(unsure), **state_of(adapter)}


def worst(run: str, kind: str, folder: Path, **choices: Any) -> float:
    """Return the largest difference of ttac's run from the published code: logits, and state with golden numbers."""
    found, expected = trajectory(run, kind, folder, **choices), official(run, kind)
    decisions = expected.pop("unsure", None)
    names = {name: name.removeprefix("after/").replace(".weight", ".scale") for name in expected}
    assert decisions is None or decisions.tolist() == found["unsure"].tolist()
    return max(float(np.abs(found[names[name]] - value).max()) for name, value in expected.items())
