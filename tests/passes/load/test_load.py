"""The room `load`: the files it accepts, its changes to them, and every refusal with its way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.external_files import HEAD, external
from tests.support.refusals import refusal
from tests.support.source_models import run, saved, source
from ttac.errors import UnsupportedError, UsageError
from ttac.passes.graph.keys import LAYER
from ttac.passes.load.model_file import REFERENCE, load
from ttac.passes.load.weights_apart import with_weights, without_weights

TWO_OUTPUTS = """
net (float[N,4] x, float[N,4] mask) => (float[N,5] logits, float[N,4] masked) {
  logits = Gemm <transB = 1> (x, "fc.weight", "fc.bias")
  masked = Mul (x, mask)
}
"""


def test_a_model_comes_back_with_its_layers_named(tmp_path: Path) -> None:
    model = load(saved(source(), tmp_path))
    assert model.opset_imports == {"": 18} and model.ir_version == 8
    assert [node.metadata_props[LAYER] for node in model.graph] == [
        "conv",
        "bn",
        "relu",
        "pool.globalaveragepool",
        "flatten",
        "fc",
    ]
    assert [value.name for value in model.graph.inputs] == ["x"]


@pytest.mark.parametrize("opset", range(7, 18))
def test_older_opsets_are_raised_and_compute_the_same(tmp_path: Path, opset: int) -> None:
    lines: list[str] = []
    before = source(opset=opset, ir_version=7)
    model = load(saved(before, tmp_path), say=lines.append)
    assert model.opset_imports[""] == 18 and lines == [f"opset {opset} converted to 18"]
    assert model.graph[1].metadata_props[LAYER] == "bn"
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), run(before, x), rtol=1e-6)
    assert model.meta[REFERENCE].opset_imports[""] == opset


@pytest.mark.parametrize("opset", [18, 19, 20, 21])
def test_opsets_in_range_stay(tmp_path: Path, opset: int) -> None:
    assert load(saved(source(opset=opset), tmp_path)).opset_imports[""] == opset


@pytest.mark.parametrize("opset", range(22, onnx.defs.onnx_opset_version() + 1))
def test_newer_opsets_are_lowered(tmp_path: Path, opset: int) -> None:
    model = load(saved(source(opset=opset, ir_version=11), tmp_path))
    assert model.opset_imports[""] == 21 and model.ir_version == 10
    assert run(model, np.ones((1, 3, 8, 8), np.float32)).shape == (1, 5)


def test_an_operator_that_cannot_be_lowered_is_refused(tmp_path: Path) -> None:
    text = "net (float[N,4] x) => (float[N,4] y) { y = Swish (x) }"
    path = saved(source(text, {}, opset=24, ir_version=11), tmp_path)
    refusal(UnsupportedError, lambda: load(path), "opset 24 cannot be converted to 21", "opset_version=18")


def test_opset_limits(tmp_path: Path) -> None:
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    model = source(opset=18)
    for path, opset in ((old, 6), (new, onnx.defs.onnx_opset_version() + 1)):
        model.opset_import[0].version = opset
        path.write_bytes(model.SerializeToString())
    refusal(UnsupportedError, lambda: load(old), "opset 6 is older than 7", "torch.onnx.export")
    refusal(UnsupportedError, lambda: load(new), "newer than onnx", "torch.onnx.export")
    model.opset_import[0].version = 18
    model.ir_version = onnx.IR_VERSION + 1
    new.write_bytes(model.SerializeToString())
    refusal(UnsupportedError, lambda: load(new), f"IR version {onnx.IR_VERSION + 1}", "pip install --upgrade onnx")


def test_small_external_tensors_travel_with_the_graph(tmp_path: Path) -> None:
    model = load(external(tmp_path))
    bare, weights = without_weights(model)
    assert not weights
    assert all(not tensor.external_data for tensor in bare.graph.initializer)
    again = with_weights(bare, weights, like=model)
    x = np.ones((1, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(run(again, x), run(source(), x))


def test_external_integers_of_any_size_are_read(tmp_path: Path) -> None:
    text = 'net (float[N,320] x) => (float[N,320] y) { s = Cast <to = 1> ("steps") y = Add (x, s) }'
    model = source(text, {"steps": np.arange(320)})
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0, location="steps.bin")
    assert (tmp_path / "steps.bin").stat().st_size >= 2560
    x = np.zeros((1, 320), np.float32)
    np.testing.assert_array_equal(run(load(tmp_path / "model.onnx"), x), np.arange(320, dtype=np.float32)[None])


def test_an_unknown_output_lists_the_outputs(tmp_path: Path) -> None:
    path = saved(source(TWO_OUTPUTS, HEAD), tmp_path)
    assert [value.name for value in load(path).graph.outputs] == ["logits", "masked"]
    refusal(UsageError, lambda: load(path, output="labels"), "there is no output `labels`", "`masked` float [N,4]")


def test_an_output_keeps_an_input_of_its_own(tmp_path: Path) -> None:
    model = load(saved(source(TWO_OUTPUTS, HEAD), tmp_path), output="logits")
    assert [value.name for value in model.graph.inputs] == ["x", "mask"]
    assert [value.name for value in model.graph.outputs] == ["logits", "masked"]


def test_the_input_to_distort_must_lead_to_the_output(tmp_path: Path) -> None:
    path = saved(source(TWO_OUTPUTS, HEAD), tmp_path)
    refusal(UsageError, lambda: load(path, output="logits", input="image"), "there is no input `image`")
    refusal(UnsupportedError, lambda: load(path, output="logits", input="mask"), "does not depend on input `mask`")
    assert load(path, output="logits", input="x").graph.inputs[0].name == "x"
    assert load(path, output="masked", input="mask").graph.inputs[0].name == "mask"


def test_an_output_without_input_is_refused(tmp_path: Path) -> None:
    text = 'net (float[N,4] x) => (float[5] y) { y = Relu ("fc.bias") }'
    refusal(UnsupportedError, lambda: load(saved(source(text, HEAD), tmp_path)), "`y` depends on no input")


@pytest.mark.parametrize("kind", ["float16", "double", "uint8", "int32", "int64", "bool"])
def test_inputs_of_numbers_are_taken(tmp_path: Path, kind: str) -> None:
    text = f"net ({kind}[N,4] x) => (float[N,4] y) {{ y = Cast <to = 1> (x) }}"
    x = load(saved(source(text, {}), tmp_path)).graph.inputs[0]
    assert x.dtype is not None and x.dtype.name.lower() == kind


@pytest.mark.parametrize("kind", ["bfloat16", "string"])
def test_inputs_of_other_types_are_refused(tmp_path: Path, kind: str) -> None:
    text = f"net ({kind}[N,4] x) => (float[N,4] y) {{ y = Cast <to = 1> (x) }}"
    refusal(UnsupportedError, lambda: load(saved(source(text, {}), tmp_path)), f"the input `x` is {kind}, not numbers")


def test_an_output_of_text_is_refused(tmp_path: Path) -> None:
    text = "net (float[N,4] x) => (string[N,4] y) { y = Cast <to = 8> (x) }"
    refusal(UnsupportedError, lambda: load(saved(source(text, {}), tmp_path)), "the output `y` is string, not numbers")


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_weights_stored_in_another_type_become_float32(tmp_path: Path, kind: type) -> None:
    text = 'net (float[N,4] x) => (float[N,5] y) { w = Cast <to = 1> ("fc.weight") y = MatMul (x, w) }'
    before = source(text, {"fc.weight": (np.arange(20) / 8).reshape(4, 5).astype(kind)})
    model = load(saved(before, tmp_path))
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert model.graph.initializers["fc.weight"].dtype == ir.DataType.FLOAT
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run(model, x), run(before, x))


def test_half_precision_models_compute_in_single_precision(tmp_path: Path) -> None:
    text = """net (float16[N,4] x) => (float16[N,5] y) {
        z = MatMul (x, "fc.weight") s = Cast <to = 1> (z) r = Relu (s) y = Cast <to = 10> (r)
    }"""
    before = source(text, {"fc.weight": (np.arange(20) / 8).reshape(4, 5).astype(np.float16)})
    lines: list[str] = []
    model = load(saved(before, tmp_path), say=lines.append)
    assert lines == ["the file computes in float16: the bundle computes in float32"]
    assert {value.dtype for value in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}
    x = np.random.default_rng(0).standard_normal((2, 4))
    np.testing.assert_allclose(
        run(model, x.astype(np.float32)), run(before, x.astype(np.float16)), rtol=2e-3, atol=1e-2
    )


def test_weights_in_double_precision_are_refused(tmp_path: Path) -> None:
    text = """net (float[N,4] x) => (float[N,5] y) {
        h = Cast <to = 11> (x) z = MatMul (h, "fc.weight") y = Cast <to = 1> (z)
    }"""
    path = saved(source(text, {"fc.weight": np.ones((4, 5), np.float64)}), tmp_path)
    refusal(UnsupportedError, lambda: load(path), "weights in float64", "`fc.weight` double [4,5]", "model.float()")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_layers_with_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    text = 'net (float[N,4] x) => (float[N,5] y) { [fc] y = MatMul (x, "fc.weight") }'
    path = saved(source(text, {"fc.weight": np.array([[value] * 5] * 4, np.float32)}), tmp_path)
    refusal(UnsupportedError, lambda: load(path), "the weights `fc.weight`", "node `fc` (MatMul)", "export the weights")


def test_a_mask_may_be_infinite(tmp_path: Path) -> None:
    text = 'net (float[N,4] x) => (float[N,4] y) { [mask] y = Add (x, "mask") }'
    load(saved(source(text, {"mask": np.full(4, -np.inf, np.float32)}), tmp_path))


def test_foreign_operators_are_listed(tmp_path: Path) -> None:
    text = """
    net (float[N,4] x) => (float[N,4] y) {
      [fused] h = com.microsoft.Trilu (x, "fc.weight")
      [mine] y = my.own.Thing (h)
    }"""
    model = source(text, {"fc.weight": (4, 4)})
    model.opset_import.add(domain="com.microsoft", version=1)
    model.opset_import.add(domain="my.own", version=1)
    refusal(
        UnsupportedError,
        lambda: load(saved(model, tmp_path)),
        "`com.microsoft.Trilu`, `my.own.Thing`",
        "node `fused` (com.microsoft.Trilu)",
        "node `mine`",
        "as it was exported",
    )


def test_foreign_operators_off_the_chosen_output_do_not_matter(tmp_path: Path) -> None:
    text = """
    net (float[N,4] x) => (float[N,5] y, float[N,4] debug) {
      y = Gemm <transB = 1> (x, "fc.weight", "fc.bias")
      debug = com.microsoft.Trilu (x)
    }"""
    model = source(text, HEAD)
    model.opset_import.add(domain="com.microsoft", version=1)
    assert [node.op_type for node in load(saved(model, tmp_path), output="y").graph] == ["Gemm"]


def test_functions_are_written_out(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 18, "pkg.torch" : 1]>
    net (float[N,4] x) => (float[N,4] y) { y = pkg.torch.silu (x) }
    <domain: "pkg.torch", opset_import: ["" : 18]>
    silu (a) => (b) { s = Sigmoid (a) b = Mul (a, s) }""")
    loaded = load(saved(model, tmp_path))
    assert [node.op_type for node in loaded.graph] == ["Sigmoid", "Mul"] and not loaded.functions
    x = np.array([[1, -1, 2, 0]], np.float32)
    np.testing.assert_allclose(run(loaded, x), x / (1 + np.exp(-x)), rtol=1e-6)


def test_initializers_listed_as_inputs_are_constants(tmp_path: Path) -> None:
    model = source(ir_version=3, opset=9)
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    loaded = load(saved(model, tmp_path))
    assert [value.name for value in loaded.graph.inputs] == ["x"] and loaded.ir_version == 8
    assert "conv.weight" in loaded.graph.initializers


def test_the_long_name_of_the_default_domain(tmp_path: Path) -> None:
    model = source()
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx"
    loaded = load(saved(model, tmp_path))
    assert loaded.opset_imports == {"": 18} and {node.domain for node in loaded.graph} == {""}


def test_refusals_carry_their_exit_codes() -> None:
    assert UsageError.exit_code == 2 and UnsupportedError.exit_code == 3
