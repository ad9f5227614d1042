"""The fed weights of a bundle are those of 1x1 convolutions, and feeding changes no number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ttac
from tests.support.source_models import Weights, norm, run, saved, source
from tests.support.whole_models import compiled, samples

POINTWISE = """
net (float[batch,32,6,6] x) => (float[batch,5] y) {
  ["/first/Conv"] a = Conv (x, "first.weight")
  ["/bn1/BatchNormalization"] b = BatchNormalization (a, "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var")
  ["/Relu"] r = Relu (b)
  ["/second/Conv"] c = Conv (r, "second.weight")
  ["/bn2/BatchNormalization"] d = BatchNormalization (c, "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var")
  ["/pool/GlobalAveragePool"] p = GlobalAveragePool (d)
  ["/Flatten"] f = Flatten (p)
  ["/fc/Gemm"] y = Gemm <transB = 1> (f, "fc.weight", "fc.bias")
}
"""
WEIGHTS: Weights = {
    "first.weight": np.random.default_rng(0).normal(0, 0.2, (32, 32, 1, 1)).astype(np.float32),
    "second.weight": np.random.default_rng(1).normal(0, 0.2, (24, 32, 1, 1)).astype(np.float32),
    **norm("bn1", 32), **norm("bn2", 24), "fc.weight": (5, 24), "fc.bias": (5,),
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "train", "expected"),
    [
        ("source", "norms", set()),
        ("leantta", "norms", {"first.weight", "second.weight"}),
        ("leantta", "bn2", {"second.weight"}),
        ("bn", "bn1", {"first.weight"}),
        ("tent", "bn2", {"first.weight", "second.weight"}),
    ],
)
@pytest.mark.parametrize("batch", [1, 4])
def test_only_what_is_observed_is_fed_without_a_backward(
    method: str, train: str, expected: set[str], batch: int, tmp_path: Path
) -> None:
    folder = compiled(saved(source(POINTWISE, WEIGHTS), tmp_path), tmp_path, method=method, train=train, batch=batch)
    inputs = {value.name for value in onnx.load(folder / "forward.onnx", load_external_data=False).graph.input}
    assert inputs & {"first.weight", "second.weight"} == expected
    assert np.isfinite(ttac.load(folder, threads=1).step(samples((32, 6, 6), batch))).all()


@pytest.mark.parametrize("choices", [{"method": "source"}, {"method": "leantta", "settings": {"tau": 1.0}}])
def test_fed_or_not_the_numbers_stay(choices: dict[str, Any], tmp_path: Path) -> None:
    model, x = source(POINTWISE, WEIGHTS), samples((32, 6, 6), 4)
    found = ttac.load(compiled(saved(model, tmp_path), tmp_path, batch=4, **choices), threads=1).step(x)
    np.testing.assert_allclose(found, run(model, x), rtol=1e-5, atol=1e-5)
