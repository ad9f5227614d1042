"""`--emit ort-training`: onnxruntime-training's own API on the emitted files, beside the bundle."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ttac
from tests.conftest import Run
from tests.support.source_models import saved, source
from tests.support.whole_models import MODELS, samples
from ttac import demo
from ttac.errors import UnsupportedError, UsageError
from ttac.options import TRAINING_FILES

CHILD = Path(__file__).parents[1] / "support" / "training_api_child.py"
LR, STEPS, BATCH = 1e-3, 5, 8
PLAIN = {"optimizer": "sgd", "momentum": 0}


def training_build() -> bool:
    """Whether the engine of this environment is the training build."""
    return any(name.startswith("onnxruntime-training") for name in map(_name, importlib.metadata.distributions()))


def _name(distribution: importlib.metadata.Distribution) -> str:
    return str(distribution.metadata["Name"])


pytestmark = [
    pytest.mark.usefixtures("unmeasured"),
    pytest.mark.skipif(not training_build(), reason="the engine is not onnxruntime-training"),
]


def emitted(model: str | Path, folder: Path, method: str = "tent", **settings: Any) -> Path:
    """The bundle of a shipped model with its emitted files beside it."""
    settings = {"lr": LR, "guard": "off", **settings}
    calibration = demo.file("fashion_calibration.npz") if isinstance(model, str) else None
    path = demo.file(model) if isinstance(model, str) else model
    ttac.compile(
        path, method=method, batch=BATCH, calibration=calibration, settings=settings, emit="ort-training",
        output=folder / "b.ttac",
    )  # fmt: skip
    return folder / "b.ttac"


def stream(model: str | Path, bundle: Path) -> np.ndarray:
    """Batches for five steps, float32 [5, 8, ...]: the shipped images for a shipped model, drawn samples for others."""
    if isinstance(model, Path):
        shape = ttac.load(bundle).input_shape
        return np.stack([samples(shape, BATCH, seed=step) for step in range(STEPS)])
    with np.load(demo.file("fashion_stream.npz")) as arrays:
        images = arrays["snow"][: STEPS * BATCH].astype(np.float32) / 255
    return images.reshape(STEPS, BATCH, 1, 28, 28)


@pytest.mark.parametrize(
    ("model", "method", "settings"),
    [
        ("fashion_resnet_bn.onnx", "tent", {}),
        pytest.param("fashion_resnet_gn.onnx", "tent", {}, marks=pytest.mark.slow),
        pytest.param("fashion_vit.onnx", "tent", {}, marks=pytest.mark.slow),
        pytest.param("fashion_resnet_bn_unfolded.onnx", "tent", PLAIN, marks=pytest.mark.slow),
        pytest.param("fashion_resnet_bn.onnx", "robust-entropy", PLAIN, marks=pytest.mark.slow),
        pytest.param("fashion_resnet_bn.onnx", "shot-im", PLAIN, marks=pytest.mark.slow),
        pytest.param("fashion_resnet_bn.onnx", "dropit", PLAIN, marks=pytest.mark.slow),
        pytest.param(MODELS["mobilenet_v2"], "tent", PLAIN, marks=pytest.mark.slow),
        pytest.param(MODELS["transformer"], "tent", {}, marks=pytest.mark.slow),
    ],
)
def test_five_steps_of_the_api_equal_the_bundle(
    model: str | Path, method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """The differences are printed: `pytest -rP -k five_steps`."""
    bundle = emitted(model, tmp_path, method, **settings)
    x = stream(model, bundle)
    np.save(tmp_path / "x.npy", x)
    command = [sys.executable, str(CHILD), "b.ort-training", "x.npy", str(LR), "out.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    adapter = ttac.load(bundle, form="portable")
    first = adapter._state.arrays()
    first = {name: array.copy() for name, array in first.items()}
    outputs = np.stack([adapter.step(batch) for batch in x])
    state = adapter._state.arrays()
    with np.load(tmp_path / "out.npz") as found:
        parameters = [name for name in found.files if name in state]
        assert len(parameters) >= 10
        assert max(np.abs(state[name] - first[name]).max() for name in parameters) > LR / 10
        apart = {name: np.abs(found[name] - state[name]).max() for name in parameters}
        logits = np.abs(found["outputs"] - outputs).max()
        print(f"{Path(model).stem}, {method}: parameters {max(apart.values()):.1e}, logits {logits:.1e}")
        for name in parameters:
            np.testing.assert_allclose(found[name], state[name], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found["outputs"], outputs, rtol=0, atol=1e-4)
        np.testing.assert_allclose(found["evaluated"], adapter.predict(x[0]), rtol=0, atol=1e-4)
        assert np.isfinite(found["losses"]).all()


@pytest.mark.parametrize(
    ("method", "settings", "problem"),
    [
        ("tent", {"optimizer": "sgd"}, "the engine's SGD has no momentum"),
        ("tent", {"weight_decay": 0.1}, "weight decay is not added to the gradient"),
        ("tent", {"source_weight": 0.01}, "do not blend the source"),
        ("tent", {"guard": "on"}, "has more than forward, backward and update"),
        ("eata", {"optimizer": "adam"}, "has more than forward, backward and update"),
        ("tent", {"statistics": "ema", **PLAIN}, "the step reads the state"),
        ("zerosiam", {"optimizer": "adam", **PLAIN}, "a learning rate of its own"),
    ],
)
def test_steps_without_such_files_are_refused(
    method: str, settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=problem):
        emitted(saved(source(), tmp_path), tmp_path, method, **settings)
    assert not (tmp_path / "b.ttac").exists() and not (tmp_path / "b.ort-training").exists()


def test_methods_without_an_optimizer_are_refused(run: Run, tmp_path: Path) -> None:
    seen = run("compile", str(saved(source(), tmp_path)), "--method", "bn", "--emit", "ort-training")
    assert seen.code == 3 and "`bn` has no optimizer" in seen.err


def test_the_files_are_valid_and_replace_older_ones(run: Run, tmp_path: Path) -> None:
    command = [
        "compile",
        str(saved(source(), tmp_path)),
        "--set",
        "guard=off",
        "--emit",
        "ort-training",
        "-o",
        "b.ttac",
    ]
    for _ in range(2):
        seen = run(*command)
        assert seen.code == 0 and "onnxruntime-training: b.ort-training" in seen.err
        assert sorted(path.name for path in Path("b.ort-training").iterdir()) == sorted(TRAINING_FILES)
    model = onnx.load("b.ort-training/eval_model.onnx")
    onnx.checker.check_model(model)
    assert model.ir_version <= 10 and not any(node.domain for node in model.graph.node)
    Path("b.ort-training/mine.txt").write_text("keep")
    seen = run(*command)
    assert seen.code == 2 and "something else" in seen.err and Path("b.ort-training/mine.txt").exists()


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`ort` is no choice"):
        ttac.compile(saved(source(), tmp_path), emit="ort", output=tmp_path / "b.ttac")
