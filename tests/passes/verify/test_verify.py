"""The derivative of the loss by finite differences: right gradients pass, wrong gradients do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.source_models import Weights, saved, source
from ttac.passes.graph.execute import Executable
from ttac.passes.verify.compare import logits_off, relative_outputs


@pytest.mark.parametrize("batch", ["1", "2", "N"])
def test_a_file_with_a_fixed_batch_is_run_as_it_asks(batch: str, tmp_path: Path) -> None:
    text = "net (float[%s,4] x) => (float[%s,5] y) { y = Gemm <transB = 1> (x, w) }"
    weights: Weights = {"w": (5, 4)}
    fixed = ir.from_proto(source(text % (batch, batch), weights))
    free = ir.from_proto(source(text % ("N", "N"), weights))
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    assert logits_off(fixed, free, {"x": x}, {"y": 0}) < 1e-6


def test_rewrites_of_the_engine_that_break_a_graph_are_left_out(tmp_path: Path) -> None:
    """Statistics of a layer norm behind an addition, and a batch norm of the rows of a product of three axes."""
    text = """net (float[N,3,4] x) => (float[N,3,1] r) {
      s = Add (x, x) y, m, r = LayerNormalization (s, ones)
    }"""
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    path = saved(source(text, {"ones": np.ones(4, np.float32)}), tmp_path)
    (found,) = Executable(path)({"x": x}).values()
    np.testing.assert_allclose(found[..., 0], 1 / np.sqrt((2 * x).var(-1) + 1e-5), rtol=1e-4)
    text = """net (float[2,3,4] x) => (float[6,5] y) {
      p = MatMul (x, w) t = Reshape (p, rows) y = BatchNormalization (t, s, b, b, s)
    }"""
    weights: Weights = {"w": (4, 5), "rows": np.array([6, 5]), "s": (5,), "b": (5,)}
    model = source(text, weights)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (found,) = Executable(saved(model, tmp_path))({"x": x}).values()
    rows = (x @ held["w"]).reshape(6, 5)
    expected = (rows - held["b"]) / np.sqrt(held["s"] + 1e-5) * held["s"] + held["b"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_tiny_probabilities_are_compared_by_absolute_error() -> None:
    """A text detector on noise: all probabilities are a few steps of the engine's Sigmoid."""
    tiny = np.array([6e-8, 8e-7])
    assert relative_outputs(tiny + 3e-7, tiny) == pytest.approx(3e-5)
    assert relative_outputs(tiny - 3e-7, -tiny) > 1 and relative_outputs(np.array([0.55]), np.array([0.5])) > 0.09
