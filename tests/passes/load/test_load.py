"""The room `load`: what it accepts, what it changes, and every refusal with its exit code and its way out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.source_models import CONV_NORM, CONV_NORM_WEIGHTS, norm, run, saved, source
from ttac.errors import TtacError, UnsupportedError, UsageError
from ttac.passes.graph.keys import LAYER
from ttac.passes.load.model_file import REFERENCE, load
from ttac.passes.load.weights_apart import with_weights, without_weights

Change = Callable[[onnx.ModelProto], None]

TWO_OUTPUTS = """
net (float[N,4] x, float[N,4] mask) => (float[N,5] logits, float[N,4] masked) {
  logits = Gemm <transB = 1> (x, "fc.weight", "fc.bias")
  masked = Mul (x, mask)
}
"""
HEAD = {"fc.weight": (5, 4), "fc.bias": (5,)}


def refusal(error: type[TtacError], call: Callable[[], object], *parts: str) -> TtacError:
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert caught.value.hint, f"no way out: {text}"
    for part in parts:
        assert part in text, text
    return caught.value


def external(folder: Path, **changes: str) -> Path:
    """A model whose `conv.weight` lies in `weights.bin`, with the entries of its external data changed."""
    model = source()
    tensor = next(t for t in model.graph.initializer if t.name == "conv.weight")
    (folder / "weights.bin").write_bytes(b"\0" * 16 + tensor.raw_data)
    entries = {"location": "weights.bin", "offset": "16", "length": str(len(tensor.raw_data)), **changes}
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


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


@pytest.mark.parametrize("opset", [9, 11, 13, 15, 17])
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


@pytest.mark.parametrize("opset", [22, 24])
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
    for path, opset in ((old, 8), (new, onnx.defs.onnx_opset_version() + 1)):
        model.opset_import[0].version = opset
        path.write_bytes(model.SerializeToString())
    refusal(UnsupportedError, lambda: load(old), "opset 8 is older than 9", "torch.onnx.export")
    refusal(UnsupportedError, lambda: load(new), "newer than onnx", "torch.onnx.export")
    model.opset_import[0].version = 18
    model.ir_version = onnx.IR_VERSION + 1
    new.write_bytes(model.SerializeToString())
    refusal(UnsupportedError, lambda: load(new), f"IR version {onnx.IR_VERSION + 1}", "pip install --upgrade onnx")


def test_no_opset_or_two_are_refused(tmp_path: Path) -> None:
    model = source()
    del model.opset_import[:]
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    refusal(UnsupportedError, lambda: load(path), "states 0 ONNX opsets")


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    refusal(UsageError, lambda: load(tmp_path / "model.onnx"), "no such file", "model.onnx")
    refusal(UsageError, lambda: load(tmp_path), "a folder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"this is a text file, surely no protobuf message", "not an ONNX model"),
        (b"PK\x03\x04 and so on", "a PyTorch checkpoint or zip"),
        (b"\x08\x08", "the file holds no graph"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refusal(UnsupportedError, lambda: load(path), message, str(path))


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
def test_a_model_cut_short_is_refused(tmp_path: Path, kept: float) -> None:
    whole = source().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole[: int(len(whole) * kept)])
    refusal(UnsupportedError, lambda: load(path))


def _wrong_size(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def _huge(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 1 << 40


def _negative(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -4


def _untyped(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 0


def _undefined(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def _unknown(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type = "Reloo"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_wrong_size, "damaged weights: 428 bytes where its shape [4, 3, 3, 3] needs 432"),
        (_huge, "damaged weights"),
        (_negative, "damaged weights"),
        (_untyped, "damaged weights"),
        (_undefined, "not a valid ONNX model"),
        (_unknown, "not a valid ONNX model"),
    ],
)
def test_damaged_models_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    model = source()
    change(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    refusal(UnsupportedError, lambda: load(path), message)


def test_external_data_is_read_from_beside_the_file(tmp_path: Path) -> None:
    model = load(external(tmp_path))
    tensor = model.graph.initializers["conv.weight"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), onnx.numpy_helper.to_array(source().graph.initializer[0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"location": "../weights.bin"}, "outside the model's folder"),
        ({"location": "a/../../weights.bin"}, "outside the model's folder"),
        ({"location": "..\\weights.bin"}, "outside the model's folder"),
        ({"location": "C:\\weights.bin"}, "outside the model's folder"),
        ({"location": ""}, "outside the model's folder"),
        ({"location": "link.bin"}, "a link that leaves the model's folder"),
        ({"location": "linked/weights.bin"}, "a link that leaves the model's folder"),
        ({"offset": "17"}, "432 bytes at offset 17 of `weights.bin`, which has 448"),
        ({"offset": "-1"}, "at offset -1"),
        ({"offset": "many"}, "damaged weights"),
        ({"length": "4"}, "432 bytes at offset 16"),
    ],
)
def test_external_data_in_the_wrong_place_is_refused(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder, **changes)
    (tmp_path / "weights.bin").write_bytes((folder / "weights.bin").read_bytes())
    os.symlink(tmp_path / "weights.bin", folder / "link.bin")
    os.symlink(tmp_path, folder / "linked")
    refusal(UnsupportedError, lambda: load(path), message, "conv.weight")


def test_missing_external_data_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    refusal(UnsupportedError, lambda: load(path), "weights.bin` (1 tensors)", "external_data=False")


def test_two_gigabytes_are_not_read(tmp_path: Path) -> None:
    """A sparse file of weights: loading, checking and converting the model must not touch it."""
    text = """
    net (float[N,32768] x) => (float[N,5] y) {
      h = MatMul (x, "large.weight")
      y = Gemm <transB = 1> (h, "fc.weight", "fc.bias")
    }"""
    model = source(text, HEAD, opset=17)
    size = 32768 * 18000 * 4
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(size)
    tensor = model.graph.initializer.add(name="large.weight", data_type=1, dims=(32768, 18000))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="large.bin")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    loaded = load(tmp_path / "model.onnx")
    held = loaded.graph.initializers["large.weight"].const_value
    assert isinstance(held, ir.ExternalTensor) and held.nbytes == size > 2 << 30
    assert "raw" not in held.__dict__ and held._array is None
    bare, weights = without_weights(loaded)
    assert list(weights) == ["large.weight"] and bare.ByteSize() < 2000


def test_small_external_tensors_travel_with_the_graph(tmp_path: Path) -> None:
    model = load(external(tmp_path))
    bare, weights = without_weights(model)
    assert not weights
    assert all(not tensor.external_data for tensor in bare.graph.initializer)
    again = with_weights(bare, weights, like=model)
    x = np.ones((1, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(run(again, x), run(source(), x))


def test_a_choice_of_outputs_is_listed(tmp_path: Path) -> None:
    path = saved(source(TWO_OUTPUTS, HEAD), tmp_path)
    refusal(
        UsageError,
        lambda: load(path),
        "the model has 2 outputs, choose one",
        "`logits` float [N,5]",
        "`masked` float [N,4]",
        "--logits logits",
    )
    refusal(UsageError, lambda: load(path, output="labels"), "there is no output `labels`", "`masked` float [N,4]")


def test_a_chosen_output_drops_the_rest(tmp_path: Path) -> None:
    lines: list[str] = []
    model = load(saved(source(TWO_OUTPUTS, HEAD), tmp_path), output="logits", say=lines.append)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [node.op_type for node in model.graph] == ["Gemm"]
    assert lines == ["output `masked` dropped", "input `mask` dropped: nothing uses it"]


def test_inputs_that_are_needed_besides_the_chosen_one_are_refused(tmp_path: Path) -> None:
    path = saved(source(TWO_OUTPUTS, HEAD), tmp_path)
    parts = ("`masked` depends on 2 inputs", "`mask` float [N,4]", "export a wrapper")
    refusal(UnsupportedError, lambda: load(path, output="masked"), *parts)
    refusal(UnsupportedError, lambda: load(path, output="masked", input="x"), *parts)
    refusal(UsageError, lambda: load(path, output="logits", input="image"), "there is no input `image`")
    refusal(UnsupportedError, lambda: load(path, output="logits", input="mask"), "does not depend on input `mask`")
    assert load(path, output="logits", input="x").graph.inputs[0].name == "x"


def test_an_output_without_input_is_refused(tmp_path: Path) -> None:
    text = 'net (float[N,4] x) => (float[5] y) { y = Relu ("fc.bias") }'
    refusal(UnsupportedError, lambda: load(saved(source(text, HEAD), tmp_path)), "`y` depends on no input")


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("float16", ("is float16", "model.float()")),
        ("bfloat16", ("is bfloat16", "model.float()")),
        ("double", ("is double", "model.float()")),
        ("uint8", ("is uint8", "float32 tensor")),
        ("int64", ("is int64", "float32 tensor")),
    ],
)
def test_inputs_of_other_types_are_refused(tmp_path: Path, kind: str, parts: tuple[str, ...]) -> None:
    text = f"net ({kind}[N,4] x) => (float[N,4] y) {{ y = Cast <to = 1> (x) }}"
    refusal(UnsupportedError, lambda: load(saved(source(text, {}), tmp_path)), "the input `x`", *parts)


def test_labels_instead_of_logits_are_refused(tmp_path: Path) -> None:
    text = "net (float[N,4] x) => (int64[N] y) { y = ArgMax <axis = 1, keepdims = 0> (x) }"
    refusal(
        UnsupportedError,
        lambda: load(saved(source(text, {}), tmp_path)),
        "the output `y` is int64",
        "export the scores",
    )


def test_half_precision_weights_are_refused(tmp_path: Path) -> None:
    text = 'net (float[N,4] x) => (float[N,5] y) { w = Cast <to = 1> ("fc.weight") y = MatMul (x, w) }'
    path = saved(source(text, {"fc.weight": np.ones((4, 5), np.float16)}), tmp_path)
    refusal(UnsupportedError, lambda: load(path), "weights in float16", "`fc.weight` float16 [4,5]", "model.float()")


def test_foreign_operators_are_listed(tmp_path: Path) -> None:
    text = """
    net (float[N,4] x) => (float[N,4] y) {
      [fused] h = com.microsoft.FusedGemm (x, "fc.weight")
      [mine] y = my.own.Thing (h)
    }"""
    model = source(text, {"fc.weight": (4, 4)})
    model.opset_import.add(domain="com.microsoft", version=1)
    model.opset_import.add(domain="my.own", version=1)
    refusal(
        UnsupportedError,
        lambda: load(saved(model, tmp_path)),
        "`com.microsoft.FusedGemm`, `my.own.Thing`",
        "node `fused` (com.microsoft.FusedGemm)",
        "node `mine`",
        "as it was exported",
    )


def test_foreign_operators_beside_the_chosen_output_do_not_matter(tmp_path: Path) -> None:
    text = """
    net (float[N,4] x) => (float[N,5] y, float[N,4] debug) {
      y = Gemm <transB = 1> (x, "fc.weight", "fc.bias")
      debug = com.microsoft.Gelu (x)
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


def _training(opset: int) -> onnx.ModelProto:
    """CONV_NORM exported in train() mode: a batch norm with updated statistics, and a dropout that drops."""
    text = CONV_NORM.replace("b = Batch", "b, m, v = Batch").replace('(c, "bn', '<training_mode = 1> (c, "bn')
    text = text.replace("f = Flatten (p)", "d = Dropout (p, ratio, training) f = Flatten (d)")
    weights = {**CONV_NORM_WEIGHTS, "ratio": np.array(0.5, np.float32), "training": np.array(True)}
    return source(text, weights, opset=opset)


def test_training_mode_is_undone_and_told(tmp_path: Path) -> None:
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


def test_refusals_carry_their_exit_codes() -> None:
    assert UsageError.exit_code == 2 and UnsupportedError.exit_code == 3
