"""LeanTTA on a part of the norms: norms of single samples and folded norms in one graph, in every form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac

DEMO = Path(ttac.__file__).parent / "demo"


@pytest.mark.parametrize("train", ["first:30%", "last:30%"])
def test_a_part_of_the_norms_adapts_to_single_samples(train: str, tmp_path: Path) -> None:
    model = DEMO / "fashion_resnet_bn_unfolded.onnx"
    ttac.compile(model, method="leantta", target="cpu", batch=1, train=train, output=tmp_path / "b.ttac")
    x = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
    chosen, portable = ttac.load(tmp_path / "b.ttac"), ttac.load(tmp_path / "b.ttac", form="portable")
    for row in x:
        expected = portable.step(row[None])
        assert np.abs(chosen.step(row[None]) - expected).max() <= 1e-4 * np.abs(expected).max()
