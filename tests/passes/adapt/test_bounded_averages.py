"""One spoiled batch moves the running averages of `statistics=ema` by a bounded amount."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import ttac

DEMO = Path(ttac.__file__).resolve().parent / "demo"
MOMENTUM = 0.1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ema") / "b.ttac"
    settings = {"statistics": "ema", "guard": "off"}  # the guard would follow none of these batches
    ttac.compile(DEMO / "fashion_resnet_bn_unfolded.onnx", method="bn", settings=settings, batch=8, output=folder)
    return folder


def images() -> np.ndarray:
    with np.load(DEMO / "fashion_stream.npz", allow_pickle=False) as arrays:
        return arrays["clean"][:8].astype(np.float32) / 255


def hot(x: np.ndarray) -> np.ndarray:
    spoiled = x.copy()
    spoiled[0, 0, 5, 5] = 1e10
    return spoiled


@pytest.mark.parametrize("spoil", [hot, lambda x: x * 65535, lambda x: -1e6 * x], ids=["hot pixel", "words", "huge"])
def test_one_batch_moves_the_averages_little(bundle: Path, spoil: object, tmp_path: Path) -> None:
    adapter = ttac.load(bundle, threads=1)
    before = load_file(bundle / "state.safetensors")
    assert callable(spoil)
    adapter.step(spoil(images()))
    adapter.save(tmp_path / "s")
    after = load_file(tmp_path / "s")
    for name in before:
        site, _, role = name.rpartition(".")
        if role == "var":
            assert (after[name] > 0).all()
            assert (after[name] <= before[name] * (1 + MOMENTUM * 8) * 1.001).all()
        else:
            reach = MOMENTUM * 3 * np.sqrt(before[f"{site}.var"] + 1e-3)
            assert (np.abs(after[name] - before[name]) <= reach * 1.001 + 1e-6).all()


def test_clean_batches_repair_the_averages(bundle: Path) -> None:
    adapter, x = ttac.load(bundle, threads=1), images()
    expected = adapter.predict(x).argmax(1)
    for _ in range(20):
        adapter.step(x * 65535)
    for _ in range(60):
        adapter.step(x)
    assert np.mean(adapter.predict(x).argmax(1) == expected) >= 0.75
