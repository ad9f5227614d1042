"""Files in 8 bits as PyTorch's and TensorFlow Lite's quantizers write them: accepted, with the same outputs.

`benchmarks.quantized_exports` makes the files of `tests/quantized`: FX quantization for two engines, quantization-aware
training, full-integer TensorFlow Lite through tf2onnx, and its weights-only form.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import ttac
from tests.support.saturating_engine import products_saturate
from tests.support.whole_models import compiled
from ttac.inspection import inspect_model
from ttac.passes.quantize.float_layers import float_layers
from ttac.runtime.bundle import Bundle

HERE = Path(__file__).resolve().parents[2] / "quantized"
FILES = sorted(path.name.removesuffix(".onnx.gz") for path in HERE.glob("*.onnx.gz"))
WHOLE = [name for name in FILES if name != "tflite-weights"]
BATCH, LAYERS = 32, 5
QUICK = {"fx-x86-relu", "tflite-relu6"}


def unpacked(name: str, folder: Path) -> Path:
    path = folder / f"{name}.onnx"
    path.write_bytes(gzip.decompress((HERE / f"{name}.onnx.gz").read_bytes()))
    return path


def samples(name: str, seed: int, count: int = BATCH) -> np.ndarray:
    """As `benchmarks.quantized_exports` calibrated with; TensorFlow's channels are last."""
    x = np.random.default_rng(seed).standard_normal((count, 3, 16, 16), dtype=np.float32)
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if name.startswith("tflite") else x


def by_the_engine(path: Path, x: np.ndarray) -> np.ndarray:
    """The outputs of the file, executed as written: optimised, the engine refuses PyTorch's fake quantization."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def slowly(names: list[str]) -> list[object]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def test_the_files_are_small_and_of_every_kind() -> None:
    assert {name.partition("-")[0] for name in FILES} == {"fx", "qat", "tflite"} and QUICK <= set(FILES)
    assert sum(path.stat().st_size for path in HERE.iterdir()) < 100_000


@pytest.mark.parametrize("name", slowly(WHOLE))
def test_as_it_is_it_stays_in_8_bits_and_gives_the_same(name: str, tmp_path: Path) -> None:
    path, x = unpacked(name, tmp_path), samples(name, seed=1)
    bundle = compiled(path, tmp_path, method="source", batch=BATCH)
    found, expected = ttac.load(bundle).step(x), by_the_engine(path, x)
    # The engine that executes the file as written computes in float32, where no sum overflows.
    bound, alike = (0.2, 0.8) if products_saturate() else (0.1, 0.9)
    assert np.sqrt(np.mean((found - expected) ** 2)) < bound * expected.std()
    assert np.mean(found.argmax(1) == expected.argmax(1)) > alike
    assert float_layers(bundle / "forward.onnx") == []


@pytest.mark.parametrize("name", slowly(WHOLE))
def test_the_folded_norms_come_back(name: str, tmp_path: Path) -> None:
    """Norms kept by training for 8 bits have the source statistics; folded norms have those of calibration data."""
    path, x = unpacked(name, tmp_path), samples(name, seed=1)
    folded = not name.startswith("qat")
    report = inspect_model(path)
    assert "8 bits" in report["eight_bit"] and report["near_misses"] == []
    assert (len(report["folded"]), len(report["norm_sites"])) == ((LAYERS, 0) if folded else (0, LAYERS))
    calibration = samples(name, seed=2, count=64)
    bundle = compiled(path, tmp_path, method="bn", batch=BATCH, calibration=calibration)
    sites = Bundle.read(bundle).manifest["sites"]
    assert [site["inserted"] for site in sites] == [folded] * LAYERS
    assert float_layers(bundle / "forward.onnx") == []
    adapter, expected = ttac.load(bundle), by_the_engine(path, x)
    assert np.mean(adapter.step(x).argmax(1) == expected.argmax(1)) > 0.8
    shifted = 0.4 * x + 0.5
    assert np.abs(adapter.step(shifted) - by_the_engine(path, shifted)).max() > 0.1 * expected.std()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tent", "leantta"])
@pytest.mark.parametrize("name", ["fx-qnnpack-relu6", "qat-relu6", "tflite-relu"])
def test_they_adapt(name: str, method: str, tmp_path: Path) -> None:
    path, x = unpacked(name, tmp_path), samples(name, seed=1)
    bundle = compiled(path, tmp_path, method=method, batch=BATCH, calibration=samples(name, seed=2, count=64))
    assert float_layers(bundle / "forward.onnx") == []
    expected = by_the_engine(path, x)
    assert np.mean(ttac.load(bundle).step(x).argmax(1) == expected.argmax(1)) > 0.8


def test_tensorflow_lites_norms_keep_their_names(tmp_path: Path) -> None:
    names = [row["name"] for row in inspect_model(unpacked("tflite-relu", tmp_path))["folded"]]
    assert names[:2] == ["functional_1.batch_normalizationn_1", "functional_1.batch_normalization_1n_1"]


def test_weights_alone_in_8_bits_are_taken_as_float(tmp_path: Path) -> None:
    path, x = unpacked("tflite-weights", tmp_path), samples("tflite-weights", seed=1)
    said: list[str] = []
    bundle = compiled(path, tmp_path, method="source", batch=BATCH, say=said.append)
    np.testing.assert_allclose(ttac.load(bundle).step(x), by_the_engine(path, x), rtol=1e-4, atol=1e-4)
    assert any("its activations are not" in line for line in said)
