"""`--quantize int8`: the modules that run in 8 bits, and their agreement with the float model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.int8_models import CPU, MODELS, SETTINGS, in_8_bits, off, samples, taken, written
from tests.support.source_models import CONV_NORM, CONV_NORM_WEIGHTS, run, saved, source
from tests.support.static_quantization import quantized_by_the_engine
from ttac.errors import UnsupportedError
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.norm_sites import find_norms
from ttac.passes.quantize.float_layers import float_layers, refuse_float_layers
from ttac.passes.quantize.fold import fold_norms, pool_first, standardise
from ttac.passes.quantize.grids import Grid, finest_grid
from ttac.passes.quantize.int8_weights import int8_kernel
from ttac.passes.quantize.module_list import Module
from ttac.passes.quantize.modules import quantize
from ttac.passes.quantize.ranges import ranges


@pytest.mark.parametrize("every", [0, 1, 3])
@pytest.mark.parametrize(
    "name", ["resnet", "mobilenet_v2", "densenet", "shufflenet", "wide_resnet", "signal", "volume"]
)
def test_no_layer_stays_in_float_and_the_model_stays_the_model(name: str, every: int, tmp_path: Path) -> None:
    plain, model, found = in_8_bits(MODELS / f"{name}.onnx", every)
    assert float_layers(written(model, tmp_path)) == []
    assert {module.runs for module in found.modules} == {"int8"}
    x = samples(plain)
    assert off(run(model, x), run(plain, x)) < 0.06


def test_only_norms_that_adapt_stay() -> None:
    _, model, found = in_8_bits(MODELS / "resnet.onnx", 3)
    left = [node for node in model.graph if node.op_type == "BatchNormalization"]
    assert [site.node for site in found.sites] == left and len(left) == 2
    assert [module.adapts for module in found.modules if module.adapts] == [site.name for site in found.sites]
    fused = [module.operators for module in found.modules if not module.adapts]
    assert "Conv + batch norm + Relu" in fused and "Add + Relu" in fused and "Gemm" in fused


def test_the_graph_around_an_adapted_norm() -> None:
    found = in_8_bits(MODELS / "resnet.onnx", 1)[2]
    norm = found.sites[0].node
    before: list[str] = []
    value = norm.inputs[0]
    while value is not None and value.producer() is not None and len(before) < 3:
        before.append(value.producer().op_type)  # type: ignore[union-attr]
        value = value.producer().inputs[0]  # type: ignore[union-attr]
    assert before == ["Cast", "QuantizeLinear", "Conv"]
    assert [use.node.op_type for use in norm.outputs[0].uses()] == ["Relu"]


def test_the_batch_stays_open() -> None:
    plain, model, _ = in_8_bits(MODELS / "mobilenet_v2.onnx", 2)
    x = samples(plain, 5)
    whole = run(model, x)
    assert all(np.array_equal(whole[i : i + 1], run(model, x[i : i + 1])) for i in range(5))


def test_another_quantizer_is_as_far_off_and_no_nearer(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    plain, ours, _ = in_8_bits(MODELS / "resnet.onnx", 0)
    fold_norms(plain, ())
    x = samples(plain)
    types = quantization.QuantType
    file = quantized_by_the_engine(plain, x, tmp_path, activation_type=types.QUInt8, weight_type=types.QInt8)
    expected = run(plain, x)
    theirs = run(onnx.load(str(file)), x)
    assert off(run(ours, x), expected) < 1.5 * off(theirs, expected) < 0.15


@pytest.mark.parametrize(
    ("choice", "bound"),
    [
        ({"int8_activations": "int8"}, 0.06),
        ({"int8_per_channel": False}, 0.12),
        ({"int8_reduce_range": True}, 0.09),
    ],
)
def test_a_target_says_how(choice: dict[str, Any], bound: float, tmp_path: Path) -> None:
    plain, model, found = in_8_bits(MODELS / "resnet.onnx", 3, target=replace(CPU, **choice))
    x = samples(plain)
    assert off(run(model, x), run(plain, x)) < bound
    seven_bits = choice.get("int8_reduce_range", CPU.int8_reduce_range)
    kernels = [v.const_value.numpy() for v in model.graph.initializers.values() if str(v.name).endswith(".int8")]  # type: ignore[union-attr]
    zeros = [node.inputs[2].dtype for node in model.graph if node.op_type == "QuantizeLinear" and node.inputs[2]]
    assert max(np.abs(kernel.astype(int)).max() for kernel in kernels) == (63 if seven_bits else 127)
    assert set(zeros) == {ir.DataType.INT8 if "int8_activations" in choice else ir.DataType.UINT8}
    scales = [
        node.inputs[1].shape.rank()
        for node in model.graph
        if node.inputs and node.inputs[0].name in model.graph.initializers and node.op_type == "DequantizeLinear"
    ]  # type: ignore[union-attr]
    assert set(scales) == ({0} if "int8_per_channel" in choice else {1})
    assert found.modules and float_layers(written(model, tmp_path)) == []


@pytest.mark.parametrize("every", [0, 1])
def test_folding_and_standardising_change_no_number(every: int) -> None:
    plain = normalise(load(MODELS / "resnet.onnx"), simplifier=None)
    model = plain.clone()
    sites = taken(model, every)
    fold_norms(model, {site.node for site in sites})
    assert all(standardise(model, site) for site in sites)
    x = samples(plain)
    np.testing.assert_allclose(run(model, x), run(plain, x), rtol=0, atol=1e-5 * np.abs(run(plain, x)).max())
    assert sum(node.op_type == "BatchNormalization" for node in model.graph) == len(sites)


@pytest.mark.parametrize(
    ("ends", "dtype", "expected"),
    [
        ((-1.0, 1.55), "uint8", Grid(float(np.float32(0.01)), 100, "uint8")),
        ((0.5, 2.55), "uint8", Grid(float(np.float32(0.01)), 0, "uint8")),
        ((-2.55, -1.0), "uint8", Grid(float(np.float32(0.01)), 255, "uint8")),
        ((0.0, 2.55), "int8", Grid(float(np.float32(0.01)), -128, "int8")),
        ((0.0, 0.0), "uint8", Grid(1.0, 0, "uint8")),
        ((0.0, 1e-44), "uint8", Grid(1.0, 0, "uint8")),
    ],
)
def test_a_grid_holds_zero_and_both_ends(ends: tuple[float, float], dtype: str, expected: Grid) -> None:
    assert finest_grid(ends, dtype) == expected


WHOLE_RANGE = replace(CPU, int8_reduce_range=False)


def test_a_kernel_in_8_bits() -> None:
    kernel = np.array([[1.0, -0.5], [0.0, 0.0], [1e-30, 0.0]], np.float32)
    rounded, scale = int8_kernel(kernel, 0, np.array([0.0, 3.0, 0.0], np.float32), 0.1, WHOLE_RANGE)
    np.testing.assert_array_equal(rounded, [[127, -64], [0, 0], [127, 0]])
    assert scale.dtype == np.float32 and scale[0] == np.float32(1 / 127)
    assert 3.0 / (float(scale[1]) * 0.1) <= 2**30 * 1.001, "a bias must fit 32 bits"


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_ranges_of_every_calibrator(method: str) -> None:
    model = normalise(load(MODELS / "signal.onnx"), simplifier=None)
    x = samples(model, 20)
    x[0, 0, 0] = 40.0
    found = ranges(model, x, method, 99.0)
    low, high = found[str(model.graph.inputs[0].name)]
    assert low < -2
    if method == "minmax":
        assert (low, high) == (float(x.min()), 40.0)
    else:
        assert 2 < high < (39 if method == "percentile" else 41)
    assert set(found) >= {str(node.outputs[0].name) for node in model.graph if node.op_type == "Conv"}


def test_sums_behind_adapted_norms_run_in_8_bits_too(tmp_path: Path) -> None:
    _, model, found = in_8_bits(MODELS / "resnet.onnx", 1)
    assert {"Add + Relu", "Conv", "Gemm"} == {module.operators for module in found.modules}
    adds = [node for node in model.graph if node.op_type == "Add"]
    makers = {value.producer().op_type for node in adds for value in node.inputs}  # type: ignore[union-attr]
    assert makers == {"DequantizeLinear"}


def test_activations_without_a_range_are_refused(tmp_path: Path) -> None:
    path = saved(source(), tmp_path)
    model = normalise(load(path), simplifier=None)
    huge = np.random.default_rng(0).random((2, 3, 8, 8), np.float32) * np.float32(3e38)
    with pytest.raises(UnsupportedError, match="not finite on the calibration data"):
        quantize(model, [], huge, CPU, SETTINGS)


def test_layers_that_the_engine_takes_back_to_float_are_found(tmp_path: Path) -> None:
    path = saved(source(), tmp_path)
    assert len(float_layers(path)) == 1 and len(float_layers(path, {"/fc/Gemm"})) == 2
    layers = (
        Module(name="conv", node="/conv/Conv", operators="Conv", runs="int8"),
        Module(name="fc", node="/fc/Gemm", operators="Gemm", runs="int8"),
    )
    with pytest.raises(UnsupportedError, match="2 layers would run in float32"):
        refuse_float_layers(path, layers)


def test_a_layer_stays_in_float_only_with_its_name_in_the_report() -> None:
    _, model, found = in_8_bits(MODELS / "hourglass.onnx", 0)
    assert [module.operators for module in found.modules if module.runs == "float32"] == ["ConvTranspose"]
    assert "1 in float32: ConvTranspose" in found.summary
    assert sum(node.op_type == "ConvTranspose" for node in model.graph) == 1


def test_a_tied_kernel_and_an_unused_bias(tmp_path: Path) -> None:
    text = CONV_NORM.replace(
        '(x, "conv.weight")', '(x, "conv.weight")\n  d = Conv <pads = [1,1,1,1]> (x, "conv.weight")'
    ).replace("Relu (b)", "Add (b, d)")
    plain, model, _ = in_8_bits(saved(source(text, CONV_NORM_WEIGHTS), tmp_path), 0)
    x = samples(plain)
    assert off(run(model, x), run(plain, x)) < 0.05


STEM = """
net (float[batch,3,8,8] x) => (float[batch,4] y) {
  c = Conv <pads = [1,1,1,1]> (x, "conv.weight")
  b = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  r = Relu (b)
  m = MaxPool <kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]> (r)
  d = Conv (m, "next.weight")
  p = GlobalAveragePool (d)
  y = Flatten (p)
}
"""


@pytest.mark.parametrize("every", [0, 1])
def test_pooling_behind_an_adapted_norm_is_float_and_first(every: int, tmp_path: Path) -> None:
    weights = {**{k: v for k, v in CONV_NORM_WEIGHTS.items() if not k.startswith("fc")}, "next.weight": (4, 4, 3, 3)}
    plain, model, _ = in_8_bits(saved(source(STEM, weights), tmp_path), every)
    order = [node.op_type for node in model.graph if node.op_type in ("Relu", "MaxPool", "QuantizeLinear")]
    if every:
        assert order == ["QuantizeLinear", "QuantizeLinear", "MaxPool", "Relu", *["QuantizeLinear"] * 3]
    else:
        assert order == ["QuantizeLinear", "Relu", "QuantizeLinear", "MaxPool", *["QuantizeLinear"] * 3]
    x = samples(plain)
    assert off(run(model, x), run(plain, x)) < 0.05


def test_pooling_first_changes_no_number(tmp_path: Path) -> None:
    weights = {**{k: v for k, v in CONV_NORM_WEIGHTS.items() if not k.startswith("fc")}, "next.weight": (4, 4, 3, 3)}
    plain = normalise(load(saved(source(STEM, weights), tmp_path)), simplifier=None)
    model = plain.clone()
    pool_first(find_norms(model).sites[0].node)
    assert [node.op_type for node in model.graph][2:4] == ["MaxPool", "Relu"]
    x = samples(plain)
    np.testing.assert_array_equal(run(model, x), run(plain, x))


@pytest.mark.parametrize("every", [0, 1])
def test_a_channel_without_variance(every: int, tmp_path: Path) -> None:
    """A dead filter behind a norm whose running variance is 0: it gives its bias, in 8 bits as in float."""
    kernel = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    kernel[0] = 0
    variance = np.array([0, 1, 2, 0.5], np.float32)
    mean = np.array([0, 0.1, 0, -0.2], np.float32)
    weights = {**CONV_NORM_WEIGHTS, "conv.weight": kernel, "bn.running_var": variance, "bn.running_mean": mean}
    plain, model, _ = in_8_bits(saved(source(weights=weights), tmp_path), every)
    x = samples(plain)
    assert off(run(model, x), run(plain, x)) < 0.05
