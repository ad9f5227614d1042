"""Cases of the kit with compiled bundles: methods on a convolutional net of some thousand weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import ttac
from benchmarks.conformance_kit.words import Call, samples

SAMPLE = (3, 8, 8)
CLASSES, BATCH = 5, 6
SIZES = (6, 6, 4, 6)

PIXELS = {"black": "-4", "white": "4"}
"""Range of the samples, for methods that distort them as images."""

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
    "zoa": {"method": "zoa", "settings": {"domain_samples": 4, "domains": 2}},
}
"""Case -> options of the compile."""

OTHER_MODELS = {
    "foa": "a vision transformer with a class token",
    "foa-i": "a vision transformer with a class token",
    "ttt": "a second output that recognises turns",
}
"""Methods without a case -> the part that they need and the net of the kit lacks."""


def calls(name: str) -> list[Call]:
    """Steps on two distributions, a prediction, and a batch with a sample that is not finite, of the case `name`."""
    most = METHODS[name].get("batch", BATCH)
    batches = [samples(min(size, most), seed, SAMPLE) for seed, size in enumerate(SIZES)]
    shifted = [{"x": 1.5 * batch["x"] + np.float32(0.5)} for batch in batches]
    spoiled = {"x": shifted[0]["x"].copy()}
    spoiled["x"][min(2, most - 1), 0, 3, 3] = np.inf
    found: list[Call] = [("step", batch) for batch in (*batches[:2], *shifted[:2])]
    return [*found, ("predict", shifted[3]), ("step", spoiled), ("step", shifted[2])]


def write(name: str, folder: Path, model: Path) -> None:
    """Compile the case `name` into `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    calibration = np.concatenate([samples(8, seed, SAMPLE)["x"] for seed in range(100, 104)])
    np.savez(model.with_suffix(".npz"), calibration)
    options = {"batch": BATCH, "calibration": model.with_suffix(".npz"), **METHODS[name]}
    ttac.compile(model, output=folder, **options)


def save_model(path: Path) -> None:
    """Write the net: two convolutions with batch norms and a shortcut, then the mean and a classifier."""
    random = np.random.RandomState(7)
    weights: dict[str, np.ndarray] = {}

    def weight(name: str, *shape: int, scale: float = 1.0) -> str:
        weights[name] = (scale * random.standard_normal(shape)).astype(np.float32)
        return name

    def norm(name: str, x: str, channels: int) -> onnx.NodeProto:
        weights[f"{name}.scale"] = random.uniform(0.8, 1.2, channels).astype(np.float32)
        weights[f"{name}.bias"] = random.uniform(-0.2, 0.2, channels).astype(np.float32)
        weights[f"{name}.mean"] = random.uniform(-0.1, 0.1, channels).astype(np.float32)
        weights[f"{name}.var"] = random.uniform(0.8, 1.5, channels).astype(np.float32)
        parts = [f"{name}.{part}" for part in ("scale", "bias", "mean", "var")]
        return helper.make_node("BatchNormalization", [x, *parts], [name], name=name)

    pads = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        helper.make_node("Conv", ["x", weight("conv1.weight", 8, 3, 3, 3, scale=0.3)], ["conv1"], name="conv1", **pads),
        norm("bn1", "conv1", 8),
        helper.make_node("Relu", ["bn1"], ["relu1"], name="relu1"),
        helper.make_node(
            "Conv", ["relu1", weight("conv2.weight", 8, 8, 3, 3, scale=0.2)], ["conv2"], name="conv2", **pads
        ),
        norm("bn2", "conv2", 8),
        helper.make_node("Add", ["bn2", "relu1"], ["sum"], name="sum"),
        helper.make_node("Relu", ["sum"], ["relu2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["relu2"], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["features"], name="flatten"),
        helper.make_node(
            "Gemm", ["features", weight("fc.weight", CLASSES, 8, scale=1.5), "fc.bias"], ["logits"], name="fc", transB=1
        ),
    ]
    weights["fc.bias"] = np.zeros(CLASSES, np.float32)
    graph = helper.make_graph(
        nodes,
        "kit",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *SAMPLE])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
