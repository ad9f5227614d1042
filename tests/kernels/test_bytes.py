"""Norms of bytes: the operators against NumPy in float64, and the form of 8-bit bundles against the portable graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("ttac_kernels", reason="needs ttac-kernels (make kernels)")

import ttac
from tests.support.int8_models import MODELS, samples
from tests.support.kernel_byte_case import check_bytes
from tests.support.kernel_session import run
from ttac.passes.load.model_file import load
from ttac.runtime.form_table import AGREED_BYTES

DEMO = Path(ttac.__file__).parent / "demo"


@pytest.mark.parametrize("first", range(0, 120, 30))
def test_random_cases_agree_with_numpy(first: int) -> None:
    for seed in range(first, first + 30):
        check_bytes(seed)


def test_sums_of_a_large_map_are_exact() -> None:
    x = np.full((1, 300, 301, 3), 255, np.uint8)
    found = run("ByteMoments", {"x": x}, ["mean", "square"], {})
    assert found["mean"].tolist() == [[255.0] * 3] and found["square"].tolist() == [[65025.0] * 3]


@pytest.mark.parametrize("prefix", ["", "Signed"])
def test_the_number_of_threads_changes_no_bit(prefix: str) -> None:
    x = np.random.default_rng(0).integers(0, 120, (3, 90, 70, 24)).astype(np.int8 if prefix else np.uint8)
    made = [run(f"{prefix}ByteMoments", {"x": x}, ["mean", "square"], {}, threads) for threads in (1, 4)]
    assert all(np.array_equal(made[0][name], made[1][name]) for name in made[0])


def compiled(model: Path, folder: Path, **choices: Any) -> ttac.Bundle:
    x = samples(load(model))
    return ttac.compile(
        model, **{"quantize": "int8", "calibration": x, "output": folder / "b.ttac", "target": "cpu", **choices}
    )


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("mobilenet_v2", {"method": "leantta", "batch": 1}),
        ("resnet", {"method": "leantta", "batch": 1}),
        ("mobilenet_v2", {"method": "bn", "batch": 4}),
        ("mobilenet_v2", {"method": "bn", "batch": 4, "target": "jetson"}),
    ],
)
def test_norms_read_bytes_in_8_bit_bundles(name: str, choices: dict[str, Any], tmp_path: Path) -> None:
    bundle = compiled(MODELS / f"{name}.onnx", tmp_path, **choices)
    graph = onnx.load(tmp_path / "b.ttac" / "forward.kernels-bytes.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    signed = "Signed" if choices.get("target") == "jetson" else ""
    sites = len(bundle.manifest["sites"])
    assert kinds.count(f"{signed}ByteNorm") == kinds.count(f"{signed}ByteMoments") == sites > 0
    assert "BatchNormalization" not in kinds
    portable, native = (ttac.load(tmp_path / "b.ttac", form=form) for form in ("portable", "kernels"))
    x = np.asarray(samples(load(MODELS / f"{name}.onnx")))
    for at in range(0, 8, choices["batch"]):
        y, expected = (adapter.step(x[at : at + choices["batch"]]) for adapter in (native, portable))
        assert np.abs(y - expected).max() <= AGREED_BYTES * np.abs(expected).max()
    assert native.stats["form"] == "kernels-bytes"


def test_the_demo_net_gives_the_same_classes(tmp_path: Path) -> None:
    with np.load(DEMO / "fashion_stream.npz") as file:
        x = file["contrast"][:96].astype(np.float32).reshape(-1, 1, 28, 28) / 255
        known = file["clean"][:64].astype(np.float32).reshape(-1, 1, 28, 28) / 255
    choices = {"method": "bn", "batch": 16, "calibration": known}
    compiled(DEMO / "fashion_resnet_bn_unfolded.onnx", tmp_path, **choices)
    made = []
    for form in ("portable", "kernels"):
        adapter = ttac.load(tmp_path / "b.ttac", form=form)
        made.append(np.concatenate([adapter.step(x[at : at + 16]) for at in range(0, 96, 16)]))
    assert (made[0].argmax(1) != made[1].argmax(1)).mean() <= 0.03
