"""Activations that a quantizer left to the saturation of an 8-bit grid, and the reading of the output behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import ttac
from tests.support.source_models import Weights, norm, run, saved, source
from tests.support.static_quantization import quantized_by_the_engine
from ttac.passes.differentiate.heads import decide_head
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.quantize.quantized_files import lift

SIX = {"low": np.float32(0), "six": np.float32(6), "three": np.float32(3)}
ACTIVATIONS = {
    "relu6": "{y} = Clip ({x}, low, six)",
    "hard swish": "{y}_a = Add ({x}, three)\n  {y}_b = Clip ({y}_a, low, six)\n  {y}_c = Mul ({x}, {y}_b)\n"
    "  {y} = Div ({y}_c, six)",
    "relu": "{y} = Relu ({x})",
}


def net(activation: str, depth: int = 3) -> onnx.ModelProto:
    """A trained net reaches beyond the bounds of its activations: here by scales of 6."""
    random = np.random.default_rng(0)
    lines, weights, channels = [], {**SIX}, 3
    x = "x"
    for number in range(depth):
        convolution = f'c{number} = Conv <pads = [1,1,1,1]> ({x}, "k{number}", "b{number}")'
        lines += [convolution, ACTIVATIONS[activation].format(x=f"c{number}", y=f"a{number}")]
        kernel = random.normal(size=(6, channels, 3, 3)) * 6 / np.sqrt(9 * channels) / (1 if number == 0 else 3)
        weights[f"k{number}"], weights[f"b{number}"] = (
            kernel.astype(np.float32),
            random.normal(size=6).astype(np.float32),
        )
        x, channels = f"a{number}", 6
    lines += [f"p = GlobalAveragePool ({x})", "f = Flatten (p)", 'y = Gemm <transB = 1> (f, "w", "b")']
    weights |= {"w": random.normal(size=(4, 6)).astype(np.float32), "b": np.zeros(4, np.float32)}
    text = "net (float[N,3,8,8] x) => (float[N,4] y) {\n  " + "\n  ".join(lines) + "\n}"
    return source(text, {k: np.asarray(v) for k, v in weights.items()})


def images(count: int = 32) -> np.ndarray:
    return 2 * np.random.default_rng(1).standard_normal((count, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_a_dropped_activation_comes_back(activation: str, tmp_path: Path) -> None:
    """onnxruntime's quantizer drops the Clip; the lifted model computes the outputs of the 8-bit file."""
    file = quantized_by_the_engine(normalise(load(saved(net(activation), tmp_path))), images(), tmp_path)
    proto = onnx.load(file)
    assert not {"Relu", "Clip"} & {node.op_type for node in proto.graph.node}
    lifted, _ = lift(load(file))
    expected = ort.InferenceSession(str(file)).run(None, {"x": images()})[0]
    error = np.sqrt(np.mean((run(lifted, images()) - expected) ** 2)) / expected.std()
    assert error < 0.1
    ttac.compile(file, output=tmp_path / "b.ttac", method="source", batch=4, calibration=images())
    predictions = ttac.load(tmp_path / "b.ttac").predict(images(4))
    np.testing.assert_allclose(predictions, expected[:4], atol=0.1 * np.abs(expected).max())


ENDING = """
net (float[N,3,6,6] x) => (float[N,4] y) {
  c = Conv <pads = [1,1,1,1]> (x, "k")
  n = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  p = GlobalAveragePool (n)
  s = Softmax <axis = 1> (p)
  qs = QuantizeLinear (s, scale, zero)
  ds = DequantizeLinear (qs, scale, zero)
  r = Reshape (ds, shape)
  qr = QuantizeLinear (r, scale, zero)
  y = DequantizeLinear (qr, scale, zero)
}
"""
ENDING_WEIGHTS: Weights = {
    "k": (4, 3, 3, 3), **norm("bn", 4), "scale": np.asarray(np.float32(1 / 256)), "zero": np.asarray(np.uint8(0)),
    "shape": np.array([-1, 4], np.int64),
}  # fmt: skip


def test_the_8_bit_form_has_the_head_of_the_float_file(tmp_path: Path) -> None:
    """A Softmax and a Reshape, each behind a rounding to a grid that starts at 0."""
    lifted, _ = lift(load(saved(source(ENDING, ENDING_WEIGHTS), tmp_path)))
    assert "Relu" not in operators(lifted) and "Clip" not in operators(lifted)
    head = decide_head(normalise(lifted).graph.outputs[0])
    assert (head.kind, head.values) == ("classes", "probabilities")


def test_a_relu_behind_a_pooling_is_not_lost(tmp_path: Path) -> None:
    text = ENDING.replace("s = Softmax <axis = 1> (p)", "s = Identity (p)")
    lifted, _ = lift(load(saved(source(text, ENDING_WEIGHTS), tmp_path)))
    assert operators(lifted).count("Clip") == 1


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]
