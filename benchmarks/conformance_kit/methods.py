"""Cases of the kit with compiled bundles: every method, on a net of the module `models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import ttac
from benchmarks.conformance_kit import models
from benchmarks.conformance_kit.models import SAMPLE
from benchmarks.conformance_kit.words import Call, samples

BATCH = 6
SIZES = (6, 6, 4, 6)

PIXELS = {"black": "-4", "white": "4"}
"""Range of the samples, for methods that distort them as images."""

PROMPTS = {"candidates": 4, "prompts": 2, "seed": 1}
"""Settings of a short search for prompt tokens."""

METHODS: dict[str, dict[str, Any]] = {
    "source": {"method": "source"},
    "bn": {"method": "bn"},
    "tent": {"method": "tent"},
    "tent-sgd": {"method": "tent", "settings": {"optimizer": "sgd", "lr": 0.01}},
    "tent-guard": {"method": "tent", "settings": {"guard": "on"}},
    "tent-check": {"method": "tent", "settings": {"guard_check": 2, "guard_loss": 1e-4}},
    "tent-all": {"method": "tent", "train": "all"},
    "eata": {"method": "eata"},
    "sar": {"method": "sar", "settings": {"margin": 2.0}},
    "deyo": {"method": "deyo"},
    "surgeon": {"method": "surgeon"},
    "surgeon-all": {"method": "surgeon", "train": "all"},
    "leantta": {"method": "leantta"},
    "t3a": {"method": "t3a"},
    "t3a-check": {"method": "t3a", "settings": {"guard_check": 2, "guard_loss": 1e-4}},
    "mecta-check": {"method": "mecta", "settings": {"guard_check": 2, "guard_loss": 1e-4}},
    "lame": {"method": "lame"},
    "tent-window": {"method": "tent", "settings": {"window": 8}},
    "bn-ema": {"method": "bn", "settings": {"statistics": "ema"}},
    "tent-prior": {"method": "tent", "settings": {"prior_correction": True}},
    "tent-estimate": {"method": "tent", "settings": {"estimate": 3}},
    "cotta": {"method": "cotta", "settings": {**PIXELS, "views": 2}},
    "dropit": {"method": "dropit"},
    "ecotta": {"method": "ecotta"},
    "law": {"method": "law", "settings": PIXELS},
    "mecta": {"method": "mecta"},
    "neo": {"method": "neo"},
    "robust-entropy": {"method": "robust-entropy"},
    "roid": {"method": "roid", "settings": PIXELS},
    "rotta": {"method": "rotta", "settings": {**PIXELS, "capacity": 6, "interval": 6}},
    "shot-im": {"method": "shot-im"},
    "sight": {"method": "sight", "batch": 1},
    "zerosiam": {"method": "zerosiam"},
    "foa": {"method": "foa", "settings": PROMPTS},
    "foa-i": {"method": "foa-i", "settings": {**PROMPTS, "interval": 6}},
    # Drawn weights recognise no turns, and the compile refuses such a model if it has samples.
    "ttt": {"method": "ttt", "logits": "logits", "calibration": None, "settings": {**PIXELS, "copies": 2, "shift": 1}},
    "zoa": {"method": "zoa", "settings": {"domain_samples": 4, "domains": 2}},
}
"""Case -> options of the compile; without `calibration`, they get drawn samples."""

MODELS = {"foa": models.transformer, "foa-i": models.transformer, "ttt": models.turning}
"""Method -> the model that it needs, for methods that do not fit the convolutional net."""


def calls(name: str) -> list[Call]:
    """Steps on two distributions, a prediction, and a batch with a sample that is not finite, of the case `name`."""
    most = METHODS[name].get("batch", BATCH)
    batches = [samples(min(size, most), seed, SAMPLE) for seed, size in enumerate(SIZES)]
    shifted = [{"x": 1.5 * batch["x"] + np.float32(0.5)} for batch in batches]
    spoiled = {"x": shifted[0]["x"].copy()}
    spoiled["x"][min(2, most - 1), 0, 3, 3] = np.inf
    found: list[Call] = [("step", batch) for batch in (*batches[:2], *shifted[:2])]
    found += [("predict", shifted[3]), ("step", spoiled), ("step", shifted[2])]
    # Each step of the search for prompts magnifies the rounding of the step before.
    return found[:5] if name == "foa" else found


def write(name: str, folder: Path, place: Path) -> None:
    """Compile the case `name` into `folder`; its model and samples are written to the folder `place` first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    options = {"batch": BATCH, **METHODS[name]}
    make = MODELS.get(options["method"], models.convolutional)
    model, known = place / f"{make.__name__}.onnx", place / "calibration.npz"
    make(model)
    np.savez(known, np.concatenate([samples(8, seed, SAMPLE)["x"] for seed in range(100, 104)]))
    ttac.compile(model, output=folder, **{"calibration": known, **options})
