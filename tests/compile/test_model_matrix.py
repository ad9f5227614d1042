"""Architectures as PyTorch's and Keras' exporters write them: compiled with a method, run, the gradient checked against the loss.

`tests/matrix` holds structures only, made by `benchmarks.model_matrix_structures`; the names of the files say which
network, exporter and method.  The whole table is in `docs/model-matrix.md`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ttac
from tests.support.structures import restore
from tests.support.whole_models import compiled, samples, state_of

HERE = Path(__file__).resolve().parents[1] / "matrix"
FILES = {path.name.removesuffix(".onnx.gz"): path for path in sorted(HERE.glob("*.onnx.gz"))}
BATCH = 4
QUICK = {"mlp_mixer.dynamo.tent", "resnet.dynamo-plain.bn", "poolformer.legacy-17.sar", "deit3.legacy-13.eata"} | {
    "keras_vit.tf2onnx-17.tent", "keras_series.keras.bn", "keras_group_norm.tf2onnx-18.sar"
}  # fmt: skip
FOLDING = {"legacy-13", "legacy-14", "dynamo", "keras", *(f"tf2onnx-{opset}" for opset in range(13, 19))}
"""Exporters that fold batch norms away."""

EVERYTHING = {"tent": {}, "bn": {}, "sar": {"margin": 9.0}, "eata": {"margin": 9.0, "redundancy": 1.0}}
"""Settings with which no sample is filtered out: entropies of untrained networks are high."""


def test_the_matrix_is_as_wide_as_it_should_be() -> None:
    names = [name.split(".") for name in FILES]
    methods = Counter(method for _, _, method in names)
    assert len({network for network, _, _ in names}) >= 40
    assert set(methods) == set(EVERYTHING) and min(methods.values()) >= 10
    assert len({exporter for _, exporter, _ in names}) >= 14
    assert sum(network.startswith("keras_") for network, _, _ in names) >= 10
    assert sum(path.stat().st_size for path in FILES.values()) < 4 << 20
    assert QUICK <= set(FILES)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
)
def test_it_compiles_adapts_and_has_the_right_gradient(name: str, tmp_path: Path) -> None:
    _, exporter, method = name.split(".")
    model = restore(FILES[name], tmp_path / "model.onnx")
    x = images(model)
    bundle = compiled(
        model,
        tmp_path,
        method=method,
        batch=BATCH,
        calibration=calibration(x) if exporter in FOLDING else None,
        settings=EVERYTHING[method],
    )
    check_verified(bundle, method)
    adapter = ttac.load(bundle)
    before, first = state_of(adapter), adapter.step(x)
    assert first.shape[0] == BATCH and np.isfinite(first).all()
    assert adapter.step(x[:3]).shape == (3, *first.shape[1:])
    moved = [key for key, value in state_of(adapter).items() if not np.array_equal(value, before[key])]
    assert moved and (method == "bn" or any(key.endswith((".scale", ".bias")) for key in moved))


def check_verified(bundle: Path, method: str) -> None:
    found: dict[str, Any] = json.loads((bundle / "report.json").read_text())["verified"]
    assert found["logits_off"] <= 1e-4
    if method != "bn":
        assert found["gradients_halves"] <= 1e-5 and found["derivative"] <= 2e-2


def images(model: Path) -> np.ndarray:
    dims = onnx.load(str(model)).graph.input[0].type.tensor_type.shape.dim
    return samples([dim.dim_value for dim in dims][1:], BATCH)


def calibration(x: np.ndarray) -> np.ndarray:
    """For files whose norms the exporter folded away."""
    return samples(x.shape[1:], 16, seed=1)
