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
from ttac.inspection import inspect_model

TEXT = f"""m (float[N,3,8,12] x) => (float[12,1,N,3] y) {{ {BODY}
  g = ReduceMean <axes = [2], keepdims = 0> (r)
  t = Transpose <perm = [2, 0, 1]> (g)
  y = com.microsoft.DynamicQuantizeLSTM <hidden_size = 3> (t, wl, rl, , , , , , ws, wz, rs, rz)
}}"""

WHOLE = """m (int64[N,6] x) => (float[N,6,5] y) {
  g = Gather (table, x)
  q, s, z = DynamicQuantizeLinear (g)
  i = MatMulInteger (q, w, z)
  f = Cast <to = 1> (i)
  k = Mul (s, ws)
  m = Mul (f, k)
  y = Add (b, m)
}"""
"""A reader of characters whose only layer multiplies whole numbers, as onnxruntime's dynamic quantization writes it."""


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


def test_a_file_of_whole_numbers_says_why_nothing_adapts(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    arrays = {"table": random.normal(size=(9, 4)).astype(np.float32), "b": random.normal(size=5).astype(np.float32)}
    whole = {"w": random.integers(-90, 90, (4, 5)).astype(np.int8), "ws": np.array(0.02, np.float32)}
    path = saved(source(WHOLE, {**arrays, **whole}, opset=15), tmp_path)
    report = inspect_model(path)
    assert report["head"] == "dense: 5 classes along axis 2, logits"
    assert [row["because"] for row in report["left_alone"]] == ["it multiplies whole numbers"]
    with pytest.raises(UnsupportedError, match="its linear layers multiply whole numbers") as caught:
        ttac.compile(path, method="bn", batch=4, output=tmp_path / "b.ttac")
    assert "compile the float file" in str(caught.value.hint)
    x = random.integers(0, 9, (4, 6))
    ttac.compile(path, method="source", batch=4, output=tmp_path / "s.ttac")
    found = ttac.load(tmp_path / "s.ttac").predict(x)
    np.testing.assert_allclose(found, plain(path, x)["y"], rtol=1e-5, atol=1e-6)


def test_a_recurrent_layer_of_the_engine_reads_text(reader: Path) -> None:
    """Images through a recurrent layer: three axes are frames of characters, also where no layer names the axis."""
    model = onnx.load(reader)
    squeezed = onnx.helper.make_node("Squeeze", ["y", "axes"], ["text"])
    model.graph.node.append(squeezed)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "axes"))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("text", onnx.TensorProto.FLOAT, [12, "N", 3]))
    onnx.save(model, reader)
    assert inspect_model(reader)["head"] == "ctc: 3 classes along axis 2, without class 0, logits"
