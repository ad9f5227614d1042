"""Weights that are stored sparse, as text, or as integers of any width beside the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import ttac
from tests.support.source_models import source
from ttac.errors import UnsupportedError
from ttac.passes.load.model_file import load

DENSE = np.array([[0, 2, 0], [0, 0, 0], [-1, 0, 0], [0, 0, 5]], np.float32)
PRODUCT = "net (float[N,4] x) => (float[N,3] y) { y = MatMul (x, w) }"
X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)


def sparse(places: Sequence[int] | np.ndarray, dims: Sequence[int] = (4, 3)) -> onnx.SparseTensorProto:
    found = np.asarray(places, np.int64)
    values = helper.make_tensor("w", TensorProto.FLOAT, [3], [2.0, -1.0, 5.0])
    indices = helper.make_tensor("w.places", TensorProto.INT64, list(found.shape), found.flatten().tolist())
    return helper.make_sparse_tensor(values, indices, list(dims))


def saved(model: onnx.ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("places", [[1, 6, 11], [[0, 1], [2, 0], [3, 2]]])
@pytest.mark.parametrize("constant", [False, True])
def test_sparse_weights_are_read(places: list[int], constant: bool, tmp_path: Path) -> None:
    model = source(PRODUCT, {})
    if constant:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse(places)))
    else:
        model.graph.sparse_initializer.append(sparse(places))
    path = saved(model, tmp_path)
    ttac.compile(path, method="source", batch=3, output=tmp_path / "b.ttac")
    np.testing.assert_allclose(ttac.load(tmp_path / "b.ttac").predict(X), X @ DENSE, rtol=1e-6)
    if not constant:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": X})[0], X @ DENSE, rtol=1e-6)


@pytest.mark.parametrize(
    ("places", "dims", "words"),
    [
        ([1, 6, 12], (4, 3), "a place outside the shape"),
        ([1, 6], (4, 3), r"\[3\] values at \[2\] places"),
        ([1, 6, 11], (1 << 30, 3), "more than 1024 MiB"),
        ([[0, 1], [9, 0], [3, 2]], (4, 3), "damaged sparse weights"),
    ],
)
def test_damaged_sparse_weights_are_refused(
    places: list[int], dims: tuple[int, int], words: str, tmp_path: Path
) -> None:
    model = source(PRODUCT, {})
    model.graph.sparse_initializer.append(sparse(places, dims))
    with pytest.raises(UnsupportedError, match=words):
        load(saved(model, tmp_path))


def test_text_beside_the_scores_is_dropped(tmp_path: Path) -> None:
    """A table of names for the classes: `labels` is no number, and the scores are."""
    text = """
    net (float[N,4] x) => (string[N] labels, float[N,3] y) {
      y = MatMul (x, w)
      best = ArgMax <axis = 1, keepdims = 0> (y)
      labels = Gather (names, best)
    }"""
    model = source(text, {"w": DENSE})
    model.graph.initializer.append(helper.make_tensor("names", TensorProto.STRING, [3], [b"a", b"b", b"c"]))
    lines: list[str] = []
    ttac.compile(saved(model, tmp_path), method="source", batch=3, output=tmp_path / "b.ttac", say=lines.append)
    np.testing.assert_allclose(ttac.load(tmp_path / "b.ttac").predict(X), X @ DENSE, rtol=1e-6)
    assert any("output `labels` dropped: it is text" in line for line in lines)
    with pytest.raises(UnsupportedError, match="the output `labels` is string"):
        load(tmp_path / "model.onnx", output="labels")


DTYPES = (
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "bfloat16",
    "float64",
    "bool",
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 320, 4096])
def test_external_data_of_every_dtype_and_size(dtype: str, size: int, tmp_path: Path) -> None:
    text = """
    net (float[N,4] x) => (float[N,3] y) {
      wide = Cast <to = 1> (table)
      most = ReduceMax <keepdims = 0> (wide)
      h = MatMul (x, w)
      y = Add (h, most)
    }"""
    table = np.ones(size, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    model = source(text, {"w": DENSE, "table": table})
    path = tmp_path / "model.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    ttac.compile(path, method="source", batch=3, output=tmp_path / "b.ttac")
    np.testing.assert_allclose(ttac.load(tmp_path / "b.ttac").predict(X), X @ DENSE + 1, rtol=1e-6)
