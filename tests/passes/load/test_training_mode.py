"""Training-mode operators become their inference form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support.refusals import refusal
from tests.support.source_models import CONV_NORM, CONV_NORM_WEIGHTS, norm, run, saved, source
from ttac.errors import UnsupportedError
from ttac.passes.load.model_file import load


def _training(opset: int) -> onnx.ModelProto:
    """CONV_NORM exported in train() mode: a batch norm with updated statistics, and a dropout that drops."""
    text = CONV_NORM.replace("b = Batch", "b, m, v = Batch").replace('(c, "bn', '<training_mode = 1> (c, "bn')
    text = text.replace("f = Flatten (p)", "d = Dropout (p, ratio, training) f = Flatten (d)")
    weights = {**CONV_NORM_WEIGHTS, "ratio": np.array(0.5, np.float32), "training": np.array(True)}
    return source(text, weights, opset=opset)


def test_training_mode_is_undone_and_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    model = load(saved(_training(17), tmp_path), say=lines.append)
    assert lines[0] == "1 norms were in training mode: they now use their stored statistics"
    assert lines[1] == "1 dropouts were in training mode: removed"
    assert "Dropout" not in [node.op_type for node in model.graph]
    node = next(node for node in model.graph if node.op_type == "BatchNormalization")
    assert len(node.outputs) == 1 and "training_mode" not in node.attributes
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), run(source(), x), rtol=1e-6)


def test_old_batch_norms_train_when_they_have_five_outputs(tmp_path: Path) -> None:
    text = CONV_NORM.replace("b = Batch", "b, m, v, sm, sv = Batch")
    lines: list[str] = []
    model = load(saved(source(text, opset=9), tmp_path), say=lines.append)
    assert lines[0].startswith("1 norms were in training mode")
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), run(source(), x), rtol=1e-6)


def test_statistics_of_a_training_step_that_are_read_are_refused(tmp_path: Path) -> None:
    text = """
    net (float[N,4,2,2] x) => (float[N,4,2,2] y) {
      [bn] b, m, v = BatchNormalization <training_mode = 1> (
        x, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
      s = Unsqueeze (m, axes)
      y = Mul (b, s)
    }"""
    path = saved(source(text, {**norm("bn", 4), "axes": np.array([0, 2, 3])}), tmp_path)
    refusal(UnsupportedError, lambda: load(path), "reads statistics of a training step", "node `bn`", "eval()")


@pytest.mark.parametrize("opset", [13, 17])
def test_a_batch_norm_of_weights_is_written_out(tmp_path: Path, opset: int) -> None:
    """Standardised convolutions normalise their kernel in training mode: here the statistics are the point."""
    extra, mode = ("m, v, sm, sv", "") if opset < 14 else ("m, v", "<training_mode = 1>")
    text = f"""
    net (float[N,3,8,8] x) => (float[N,4,6,6] y) {{
      w = Reshape ("conv.weight", flat)
      n, {extra} = BatchNormalization {mode} (w, "g", "b", "b", "g")
      k = Reshape (n, whole)
      y = Conv (x, k)
    }}"""
    kernel = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    shapes = {"flat": np.array([1, 4, 27]), "whole": np.array([4, 3, 3, 3])}
    parameters = {"g": np.ones(4, np.float32), "b": np.zeros(4, np.float32)}
    model = load(saved(source(text, {"conv.weight": kernel, **shapes, **parameters}, opset=opset), tmp_path))
    assert "BatchNormalization" not in {node.op_type for node in model.graph}
    flat = kernel.reshape(4, 27)
    standard = (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + 1e-5)
    plain = source(
        "net (float[N,3,8,8] x) => (float[N,4,6,6] y) { y = Conv (x, w) }", {"w": standard.reshape(kernel.shape)}
    )
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), run(plain, x), rtol=1e-4, atol=1e-5)
