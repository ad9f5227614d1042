"""Graphs of a bundle that ttac does not write are refused before an engine sees them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import ttac
from tests.support import tiny_bundles as tiny
from ttac.errors import TtacError, VerificationError
from ttac.runtime import graph_check
from ttac.runtime.graph_check import External, check_graph, check_hashed_graph


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny.ema(tmp_path / "b")


def refusal(folder: Path, data: bytes) -> str:
    """The message of `load` for a bundle with `data` as its graph and correct hashes."""
    (folder / "forward.onnx").write_bytes(data)
    tiny.reseal(folder)
    with pytest.raises(VerificationError) as caught:
        ttac.load(folder)
    assert "forward.onnx" in caught.value.where and caught.value.hint
    return str(caught.value)


def model(change: Callable[[onnx.ModelProto], object]) -> bytes:
    changed = tiny.parse("forward (float[N,3] x) => (float[N,3] logits) { logits = Relu(x) }")
    change(changed)
    return changed.SerializeToString()


def tensor(**more: object) -> TensorProto:
    return TensorProto(**{"name": "t", "data_type": 1, "dims": [1], "raw_data": bytes(4), **more})


def outside(location: str = "/etc/passwd") -> TensorProto:
    """A tensor of one float at the start of another file."""
    made = TensorProto(name="t", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    made.external_data.add(key="location", value=location)
    return made


def behind_a_long_tag(kind: int) -> bytes:
    """An initializer with external data in a field whose tag has the bits of field 5 and more than 32 bits."""
    content = outside().SerializeToString()
    graph = onnx.load_from_string(model(lambda m: None)).graph.SerializeToString()
    graph += bytes([0xA8 | kind, 0x80, 0x80, 0x80, 0x10, len(content)]) + content
    rest = tiny.parse("f (float[N,3] x) => (float[N,3] logits) { logits = Relu(x) }")
    rest.ClearField("graph")
    assert len(graph) < 1 << 14
    return rest.SerializeToString() + bytes([0x3A, len(graph) & 0x7F | 0x80, len(graph) >> 7]) + graph


def recursive(made: onnx.ModelProto) -> None:
    """A function that calls itself."""
    call = helper.make_node("f", ["x"], ["y"], domain="d")
    made.functions.append(helper.make_function("d", "f", ["x"], ["y"], [call], [helper.make_opsetid("", 18)]))
    made.opset_import.add(domain="d", version=1)
    made.graph.node[0].domain, made.graph.node[0].op_type = "d", "f"


def branch(made: onnx.ModelProto) -> None:
    body = helper.make_graph([], "b", [], [])
    made.graph.node.append(helper.make_node("If", ["c"], [], then_branch=body, else_branch=body))


def steps(made: onnx.ModelProto, domain: str, *inside: onnx.GraphProto) -> None:
    """A Scan whose body has one node of `domain`, with the attribute `inside`."""
    inner = helper.make_node("Relu", ["a"], ["b"], domain=domain, **({"inside": inside[0]} if inside else {}))
    body = helper.make_graph([inner], "b", [], [])
    made.graph.node.append(helper.make_node("Scan", ["x"], ["z"], body=body, num_scan_inputs=1))


def sizes(kind: str, at: int, values: list[int]) -> Callable[[onnx.ModelProto], None]:
    """A node `kind` whose input `at` is a constant."""

    def change(made: onnx.ModelProto) -> None:
        made.graph.initializer.append(helper.make_tensor("sizes", TensorProto.INT64, [len(values)], values))
        made.graph.node.append(helper.make_node(kind, [*["x"] * at, "sizes"], ["large"], name="big"))

    return change


def constant_node(made: onnx.ModelProto) -> None:
    value = onnx.numpy_helper.from_array(np.array([10**10]))
    made.graph.node.append(helper.make_node("Constant", [], ["sizes"], value=value))
    made.graph.node.append(helper.make_node("ConstantOfShape", ["sizes"], ["large"], name="big"))


@pytest.mark.parametrize("kind", [2, 3, 6])
def test_a_tag_above_32_bits_is_refused(bundle: Path, kind: int) -> None:
    assert "a graph has the unknown field" in refusal(bundle, behind_a_long_tag(kind))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (recursive, "a model has the unknown field 25"),
        (branch, "(If) has a subgraph"),
        (lambda m: steps(m, "com.evil"), "is of the operator domain `com.evil`"),
        (lambda m: steps(m, "", helper.make_graph([], "b", [], [])), "a plain has the unknown field 6"),
        (lambda m: m.training_info.add(), "a model has the unknown field 20"),
        (lambda m: m.graph.sparse_initializer.add(), "a graph has the unknown field 15"),
        (lambda m: m.graph.initializer.append(tensor(string_data=[b"x"])), "a tensor has the unknown field 6"),
        (lambda m: setattr(m.graph.node[0], "domain", "com.evil"), "is of the operator domain `com.evil`"),
        (lambda m: setattr(m.graph.node[0], "domain", "com.microsoft.nchwc"), "is of the operator domain"),
        (lambda m: m.graph.initializer.append(tensor(dims=[2])), "tensor `t` of shape [2] has 4 bytes"),
        (lambda m: m.graph.initializer.append(tensor(dims=[-1])), "has the type 1 and the shape"),
        (lambda m: m.graph.initializer.append(tensor(data_type=8)), "has the type 8"),
        (lambda m: m.graph.initializer.append(tensor(name="\x1b[2J", dims=[2])), "tensor `\\x1b[2J` of shape"),
        (sizes("ConstantOfShape", 0, [10**5, 10**5]), "node `big` makes a tensor of [100000, 100000]"),
        (sizes("Expand", 1, [1 << 40]), "node `big` makes a tensor"),
        (sizes("Tile", 1, [1 << 20, 1 << 20]), "node `big` makes a tensor"),
        (constant_node, "node `big` makes a tensor of [10000000000]"),
    ],
)
def test_graphs_that_ttac_does_not_write(bundle: Path, change: Callable[[onnx.ModelProto], None], problem: str) -> None:
    assert problem in refusal(bundle, model(change))


@pytest.mark.parametrize("location", ["/etc/passwd", "manifest.json", "../weights.safetensors", ""])
def test_external_data_elsewhere_is_refused(bundle: Path, location: str) -> None:
    message = refusal(bundle, model(lambda m: m.graph.initializer.append(outside(location))))
    assert f"the graph wants 4 bytes at 0 of `{location}`" in message


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"offset": "999999"}, "wants 4 bytes at 999999 of `weights.safetensors`"),
        ({"offset": "-4"}, "external data at ['-4'"),
        ({"offset": "9" * 30}, "external data at"),
        ({"length": "8"}, "needs 4 bytes of external data, and 8 are stated"),
        ({"basepath": "/etc"}, "describes its external data by ['basepath', 'location']"),
    ],
)
def test_external_data_beyond_the_file_is_refused(bundle: Path, entries: dict[str, str], problem: str) -> None:
    made = outside("weights.safetensors")
    for key, value in entries.items():
        made.external_data.add(key=key, value=value)
    assert problem in refusal(bundle, model(lambda m: m.graph.initializer.append(made)))


def test_data_beside_external_data_is_refused(bundle: Path) -> None:
    both, unmarked = outside("weights.safetensors"), tensor()
    both.raw_data = bytes(4)
    unmarked.external_data.add(key="location", value="/etc/passwd")
    assert "needs 4 bytes of external data" in refusal(bundle, model(lambda m: m.graph.initializer.append(both)))
    assert "is not marked as external" in refusal(bundle, model(lambda m: m.graph.initializer.append(unmarked)))


def test_a_message_twice_is_refused(bundle: Path) -> None:
    """Readers merge the two, or take the last."""
    data = model(lambda m: None)
    assert "a model has the field 1 twice" in refusal(bundle, data + data)


def test_domains_of_the_manifest_are_accepted() -> None:
    data = model(lambda m: setattr(m.graph.node[0], "domain", "ttac"))
    with pytest.raises(VerificationError, match="operator domain"):
        check_graph(data, "here")
    assert check_graph(data, "here", {"ttac"}) == []


def test_a_graph_that_passed_is_read_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(graph_check, "_passed", {})
    monkeypatch.setattr(graph_check, "check_graph", lambda *given: read.append(given[1]) or check_graph(*given))
    for _ in range(2):
        ttac.load(bundle)
    assert len(read) == len(set(read)) > 0
    assert "operator domain" in refusal(bundle, model(lambda m: setattr(m.graph.node[0], "domain", "evil")))


def test_the_domains_of_a_form_do_not_pass_elsewhere() -> None:
    data = model(lambda m: setattr(m.graph.node[0], "domain", "ttac"))
    content, digest = np.frombuffer(data, np.uint8), hashlib.sha256(data).hexdigest()
    assert check_hashed_graph(content, digest, "here", {"ttac"}) == []
    with pytest.raises(VerificationError, match="operator domain"):
        check_hashed_graph(content, digest, "here")


def test_the_body_of_a_scan_is_accepted() -> None:
    assert check_graph(model(lambda m: steps(m, "")), "here") == []


def test_places_of_external_data(bundle: Path) -> None:
    start = tiny.offset_of(bundle / "weights.safetensors")
    assert check_graph((bundle / "forward.onnx").read_bytes(), "here") == [External("weights.safetensors", start, 24)]


def test_random_damage_is_refused_or_harmless(bundle: Path) -> None:
    data, random = (bundle / "forward.onnx").read_bytes(), np.random.default_rng(0)
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(len(data))] = random.integers(256)
        try:
            check_graph(bytes(damaged), "here")
        except TtacError as error:
            assert isinstance(error, VerificationError)
