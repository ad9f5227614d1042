"""Nets with different heads.

The nets of `tests/golden/heads_*`, the PyTorch runs of methods on them, and the same runs in ttac; also a tiny net whose
last operators a test chooses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

import ttac
from tests.support.source_models import Weights, norm, saved, source
from tests.support.whole_models import Arrays, compiled, state_of

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CLASSES, STEPS, BATCH, SHAPE = 4, 3, 4, (3, 12, 12)
SETTINGS: dict[str, dict[str, dict[str, float]]] = {
    "batch": {"tent": {"lr": 0.02}},
    "group": {
        "eta": {"lr": 0.05, "margin": 0.6, "redundancy": 0.7},
        "eata": {"lr": 0.05, "margin": 0.6, "redundancy": 0.7, "fisher": 200.0},
        "sar": {"lr": 0.05, "margin": 0.6, "rho": 0.05},
    },
    "binary": {
        "tent": {"lr": 0.05},
        "eta": {"lr": 0.05, "margin": 0.7, "redundancy": 0.9},
        "eata": {"lr": 0.05, "margin": 0.7, "redundancy": 0.9, "fisher": 20.0},
        "sar": {"lr": 0.05, "margin": 0.7, "rho": 0.05},
    },
}
"""Settings of each run, by net; `eta` is `eata` without calibration."""
RUNS = [(kind, run) for kind, runs in SETTINGS.items() for run in runs]
UNTRAINED: dict[str, tuple[str, ...]] = {"group": ("norm4", "norm5"), "binary": ("7",)}
METHODS = {"tent": "tent", "eta": "eata", "eata": "eata", "sar": "sar"}


def inputs(seed: int) -> Arrays:
    """Return `x` [3, 4, 3, 12, 12] and `calibration` [12, 3, 12, 12]; the stream of RandomState never changes."""
    random = np.random.RandomState(seed)
    shapes = {"x": (STEPS, BATCH, *SHAPE), "calibration": (3 * BATCH, *SHAPE)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def model(kind: str) -> Path:
    return GOLDEN / f"heads_{kind}.onnx"


def seed_of(kind: str) -> int:
    with safe_open(GOLDEN / f"heads_{kind}.safetensors", "np") as file:
        return int(file.metadata()["seed"])


def golden(kind: str, run: str) -> Arrays:
    """Return the numbers of PyTorch: `logits` of each step, and parameters after the last step under ttac's names."""
    numbers = load_file(GOLDEN / f"heads_{kind}.safetensors")
    mine = {key.removeprefix(f"{run}/"): value for key, value in numbers.items() if key.startswith(f"{run}/")}
    return {key.removeprefix("after/").replace(".weight", ".scale"): value for key, value in mine.items()}


def bundle(kind: str, run: str, folder: Path, **settings: float | str | bool) -> Path:
    """Compile the bundle of one run."""
    chosen = {"optimizer": "sgd"} if run == "tent" else {}
    calibration = inputs(seed_of(kind))["calibration"] if run == "eata" else None
    return compiled(
        model(kind), folder, method=METHODS[run], batch=BATCH, calibration=calibration, norms="keep",
        settings={**chosen, **SETTINGS[kind][run], **settings},
    )  # fmt: skip


def worst(kind: str, run: str, folder: Path) -> float:
    """Return the largest difference from PyTorch of the logits of every step and of the parameters after the last."""
    adapter, expected = ttac.load(bundle(kind, run, folder), threads=1), golden(kind, run)
    logits = [adapter.step(x) for x in inputs(seed_of(kind))["x"]]
    assert adapter.stats["rejected"] == 0
    state = state_of(adapter)
    parameters = set(expected) - {"logits"}
    assert parameters == {name for name in state if name.endswith((".scale", ".bias"))}
    apart = [float(np.abs(state[name] - expected[name]).max()) for name in parameters]
    return max(*apart, float(np.abs(np.stack(logits) - expected["logits"]).max()))


CONV: Weights = {"conv.weight": (4, 3, 3, 3), **norm("bn", 4)}
START = """
  c = Conv <pads = [1,1,1,1]> (x, "conv.weight")
  b = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  r = Relu (b)
"""
POOL = "p = GlobalAveragePool (r) f = Flatten (p)"
HEADS: dict[str, tuple[str, Weights, str]] = {
    "classes": (f'{POOL} y = Gemm (f, "w")', {"w": (4, 5)}, "classes: 5 classes along axis 1, logits"),
    "softmax": (
        f'{POOL} z = Gemm (f, "w") y = Softmax <axis = -1> (z)', {"w": (4, 5)},
        "classes: 5 classes along axis 1, probabilities",
    ),
    "one answer": (f'{POOL} y = Gemm (f, "w")', {"w": (4, 1)}, "binary: yes or no along axis 1, logits"),
    "sigmoid": (
        f'{POOL} z = Gemm (f, "w") y = Sigmoid (z)', {"w": (4, 1)}, "binary: yes or no along axis 1, probabilities",
    ),
    "squeezed": (
        f'{POOL} z = Gemm (f, "w") s = Sigmoid (z) y = Squeeze (s, "axes")', {"w": (4, 1), "axes": np.array([1])},
        "binary: yes or no, probabilities",
    ),
    "dense": ('y = Conv (r, "w")', {"w": (6, 4, 1, 1)}, "dense: 6 classes along axis 1, logits"),
    "dense softmax": (
        'z = Conv (r, "w") y = Softmax <axis = 1> (z)', {"w": (6, 4, 1, 1)},
        "dense: 6 classes along axis 1, probabilities",
    ),
    "as older exporters move it": (
        'z = Conv (r, "w") t = Transpose <perm = [0,3,2,1]> (z) s = LogSoftmax <axis = -1> (t) '
        "y = Transpose <perm = [0,3,2,1]> (s)", {"w": (6, 4, 1, 1)},
        "dense: 6 classes along axis 1, log probabilities",
    ),
    "as older keras spells it": (
        't = Transpose <perm = [0,2,3,1]> (r) z = MatMul (t, "w") m = ReduceMax (z, "last") d = Sub (z, m) e = Exp (d) '
        's = ReduceSum (e, "last") y = Div (e, s)', {"w": (4, 6), "last": np.array([-1])},
        "dense: 6 classes along axis 3, probabilities",
    ),
    "channels last": (
        'z = Conv (r, "w") t = Transpose <perm = [0,2,3,1]> (z) y = Add (t, "bias")',
        {"w": (6, 4, 1, 1), "bias": (6,)}, "dense: 6 classes along axis 3, logits",
    ),
    "resized": (
        'z = Conv (r, "w") y = Resize <mode = "linear"> (z, , "scales")',
        {"w": (6, 4, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32)}, "dense: 6 classes along axis 1, logits",
    ),
    "mask": (
        'z = Conv (r, "w") y = Sigmoid (z)', {"w": (1, 4, 1, 1)}, "dense: yes or no along axis 1, probabilities",
    ),
    "mask, squeezed": (
        'z = Conv (r, "w") y = Squeeze (z, "axes")', {"w": (1, 4, 1, 1), "axes": np.array([1])},
        "dense: yes or no, logits",
    ),
    "tokens": (
        's = Reshape <allowzero = 0> (r, "shape") t = Transpose <perm = [0,2,1]> (s) y = MatMul (t, "w")',
        {"w": (4, 6), "shape": np.array([0, 4, 64])}, "dense: 6 classes along axis 2, logits",
    ),
    "series": (
        's = Reshape <allowzero = 0> (r, "shape") y = Conv (s, "w")', {"w": (6, 4, 1), "shape": np.array([0, 4, 64])},
        "dense: 6 classes along axis 1, logits",
    ),
    "frames, squeezed": (
        's = Reshape <allowzero = 0> (r, "shape") z = Conv (s, "w") y = Squeeze (z, "axes")',
        {"w": (1, 4, 1), "shape": np.array([0, 4, 64]), "axes": np.array([1])}, "dense: yes or no, logits",
    ),
    "volume": (
        'z = Conv (r, "w") y = Reshape <allowzero = 0> (z, "shape")',
        {"w": (6, 4, 1, 1), "shape": np.array([0, 6, 4, 4, 4])}, "dense: 6 classes along axis 1, logits",
    ),
}  # fmt: skip
SHAPES = {
    "classes": "5", "softmax": "5", "one answer": "1", "sigmoid": "1", "squeezed": "", "dense": "6,8,8",
    "dense softmax": "6,8,8", "as older exporters move it": "6,8,8", "as older keras spells it": "8,8,6",
    "channels last": "8,8,6", "resized": "6,16,16", "mask": "1,8,8", "mask, squeezed": "8,8", "tokens": "64,6",
    "series": "6,64", "frames, squeezed": "64", "volume": "6,4,4,4",
}  # fmt: skip


def written(end: str, weights: Weights, shape: str, folder: Path) -> Path:
    """Write a small net with these last operators, and return the file."""
    sizes = ",".join(part for part in ("batch", shape) if part)
    text = f"net (float[batch,3,8,8] x) => (float[{sizes}] y) {{ {START} {end} }}"
    random = np.random.default_rng(2)
    given: Weights = {**CONV, **weights}
    drawn = {n: random.normal(size=g).astype(np.float32) for n, g in given.items() if isinstance(g, tuple)}
    positive = {name: np.abs(array) + 0.5 for name, array in drawn.items() if name.startswith("bn")}
    return saved(source(text, {**given, **drawn, **positive}), folder)


def entropy_of(y: np.ndarray, head: dict[str, Any]) -> float:
    """Return the mean entropy by its definition."""
    y, axis = y.astype(np.float64), head["axis"]
    binary = head["kind"] == "binary" or axis is None or y.shape[axis] == 1
    if head["values"] == "logits":
        p = 1 / (1 + np.exp(-y)) if binary else np.exp(y) / np.exp(y).sum(axis, keepdims=True)
    else:
        p = y if head["values"] == "probabilities" else np.exp(y)
    if binary:
        return float(-(p * np.log(p) + (1 - p) * np.log1p(-p)).mean())
    return float(-(p * np.log(p)).sum(axis).mean())
