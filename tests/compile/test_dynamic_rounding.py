"""Layers that round each batch by its own range stay as they are: onnxruntime's dynamic quantization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import ttac
from tests.support.real_files import BODY, images, plain, weights
from tests.support.source_models import saved, source
from ttac.errors import UnsupportedError

TEXT = f"""m (float[N,3,8,12] x) => (float[12,1,N,3] y) {{ {BODY}
  g = ReduceMean <axes = [2], keepdims = 0> (r)
  t = Transpose <perm = [2, 0, 1]> (g)
  y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 3> (t, wl, rl, , , , , , ws, wz, rs, rz)
}}"""


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """A reader of text lines [T, 1, N, 3] with a batch norm below a layer of 8-bit weights."""
    random = np.random.default_rng(4)
    kernels = {"wl": (1, 8, 12), "rl": (1, 3, 12)}
    arrays = {name: random.integers(-90, 90, shape).astype(np.int8) for name, shape in kernels.items()}
    scales = {"ws": np.array([0.02], np.float32), "rs": np.array([0.02], np.float32)}
    zeros = {"wz": np.zeros(1, np.int8), "rz": np.zeros(1, np.int8)}
    known = {name: array for name, array in weights().items() if name not in ("wf", "wb")}
    model: onnx.ModelProto = source(TEXT, {**known, **arrays, **scales, **zeros}, opset=15)
    model.opset_import.add(domain="com.microsoft", version=1)
    return saved(model, tmp_path)


def test_an_engine_operator_runs_unchanged(reader: Path, tmp_path: Path) -> None:
    ttac.compile(reader, method="source", batch=4, output=tmp_path / "b.ttac")
    x = images(4, 3, 8, 12)
    found = ttac.load(tmp_path / "b.ttac").predict(x)
    np.testing.assert_allclose(found, plain(reader, x)["y"], rtol=1e-5, atol=1e-6)


def test_norms_below_an_engine_operator_take_new_statistics(reader: Path, tmp_path: Path) -> None:
    ttac.compile(reader, method="bn", batch=4, output=tmp_path / "b.ttac")
    adapter, x = ttac.load(tmp_path / "b.ttac"), 3 * images(4, 3, 8, 12) + 1
    assert np.abs(adapter.step(x) - plain(reader, x)["y"]).max() > 1e-2


def test_an_engine_operator_has_no_gradient(reader: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no gradient for `DynamicQuantizeLSTM`"):
        ttac.compile(reader, method="tent", batch=4, output=tmp_path / "b.ttac", head="dense", axis=3)
