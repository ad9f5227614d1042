"""Damaged, foreign and hostile files: each is refused with its reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.external_files import HEAD, external
from tests.support.refusals import refusal
from tests.support.source_models import source
from ttac.errors import UnsupportedError, UsageError
from ttac.passes.load.model_file import load
from ttac.passes.load.weights_apart import without_weights

Change = Callable[[onnx.ModelProto], None]


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


def test_arrays_named_onnx_are_called_arrays(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        np.savez(file, x=np.zeros(3))
    refusal(UnsupportedError, lambda: load(path), "arrays of NumPy (`.npz`), not ONNX", str(path))


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


def _escaped(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "x\x1b[2J"


def _marked_metadata(model: onnx.ModelProto) -> None:
    model.graph.node[1].metadata_props.add(key="namespace", value="MARK")


def _marked_node(model: onnx.ModelProto) -> None:
    model.graph.node[1].name = "MARK"


def _marked_axis(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "MARK"


def _marked_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.add(name="mark", type=onnx.AttributeProto.STRING, s=b"x").doc_string = "MARK"


@pytest.mark.parametrize("mark", [_marked_metadata, _marked_node, _marked_axis, _marked_attribute])
def test_names_and_notes_that_are_no_text_are_refused(mark: Callable[..., None], tmp_path: Path) -> None:
    model = source()
    mark(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(b"MARK", b"\xad\xff\xad\xff"))
    refusal(UnsupportedError, lambda: load(path), "a name in the file is no text")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_escaped, "holds control characters"),
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


@pytest.mark.parametrize(
    ("parameter", "changed", "message"),
    [
        (2, lambda a: a[:-1], "have 7, 8, 8, 8 values|have 8, 7, 8, 8 values"),
        (4, lambda a: -a, "hold negative numbers"),
    ],
)
def test_damaged_batch_norms(
    parameter: int, changed: Callable[[np.ndarray], np.ndarray], message: str, tmp_path: Path
) -> None:
    model = onnx.load(Path(__file__).parents[2] / "models" / "resnet.onnx")
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    tensor = next(t for t in model.graph.initializer if t.name == norm.input[parameter])
    array = changed(onnx.numpy_helper.to_array(tensor))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UnsupportedError, match=message) as caught:
        load(tmp_path / "model.onnx")
    assert norm.name in str(caught.value)
