"""`ttac view`: a copy of a graph with one box for each layer, which computes the same and has no data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

import ttac
from tests.support.whole_models import MODELS
from ttac.cli.viewing import shown_file
from ttac.reports import folded_graph
from ttac.reports.folded_graph import DOMAIN, folded

HEAD = '<ir_version: 8, opset_import: ["" : 18]>\n'
CHAIN = """g (float[2,3] x) => (float[2,3] z, float[2,3] saved) <float[3] w = {1, 2, 3}> {
  a = Mul(x, w)
  saved = Add(a, x)
  c = Relu(saved)
  d = Neg(c)
  e = Add(d, a)
  z = Abs(e)
}"""
LAYERS = ("body.0.conv", "body.0.conv", "", "body.1.conv", "body.0.conv", "body.0.conv")


def chain() -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEAD + CHAIN)
    for node, layer in zip(model.graph.node, LAYERS, strict=True):
        if layer:
            node.metadata_props.add(key="ttac.layer", value=layer)
    return model


def test_a_layer_is_a_box(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = folded(chain())
    assert [(node.domain, node.name) for node in copy.graph.node] == [
        (DOMAIN, "body.0.conv (1)"),
        ("", ""),
        (DOMAIN, "body.0.conv (2)"),
    ], "a single node is no box"
    first, _, last = copy.graph.node
    assert list(first.input) == ["x", "w"] and list(first.output) == ["a", "saved", "c"]
    assert list(last.input) == ["d", "a"] and list(last.output) == ["z"]
    assert [node.op_type for node in copy.functions[0].node] == ["Mul", "Add", "Relu"]


def test_the_boxes_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded_graph, "_forget_data", lambda tensor: None)
    model = chain()
    copy = folded(model)
    onnx.checker.check_model(copy)
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    for found, expected in zip(
        ReferenceEvaluator(copy).run(None, {"x": x}), ReferenceEvaluator(model).run(None, {"x": x}), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_many_layers_share_the_box_of_their_block() -> None:
    copy = folded(chain(), most=1)
    assert [node.name for node in copy.graph.node] == ["body"] and len(copy.functions) == 1


def test_the_copy_has_no_weights() -> None:
    (tensor,) = folded(chain()).graph.initializer
    assert (tensor.name, list(tensor.dims), tensor.ByteSize() < 60, tensor.float_data) == ("w", [3], True, [])


def test_small_constants_are_inside_the_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A box reads weights and results; axes and the like stand inside it, and it still computes the same."""
    monkeypatch.setattr(folded_graph, "_forget_data", lambda tensor: None)
    model = chain()
    two = onnx.numpy_helper.from_array(np.array(2, np.float32), "float32(2.0)")
    model.graph.initializer.append(two)
    model.graph.node[1].input[1] = two.name
    copy = folded(model)
    onnx.checker.check_model(copy)
    assert list(copy.graph.node[0].input) == ["x", "w"]
    assert [node.op_type for node in copy.functions[0].node] == ["Constant", "Mul", "Add", "Relu"]
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    for found, expected in zip(
        ReferenceEvaluator(copy).run(None, {"x": x}), ReferenceEvaluator(model).run(None, {"x": x}), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_a_graph_without_layers_stays() -> None:
    model = onnx.parser.parse_model(HEAD + CHAIN)
    assert [node.op_type for node in folded(model).graph.node] == [node.op_type for node in model.graph.node]


def test_parameters_are_inside_their_nodes() -> None:
    text = (
        "g (float[N,3] x, float[3] scale) => (float[N,3] y, float[3] turned) { y = Mul(x, scale) turned = Neg(scale) }"
    )
    graph = folded(onnx.parser.parse_model(HEAD + text)).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["x", "y"]
    assert [node.op_type for node in graph.node] == ["Mul"]
    assert [(tensor.name, list(tensor.dims)) for tensor in graph.initializer] == [("scale", [3])]


def test_no_line_of_a_bundle_is_stray(tmp_path: Path) -> None:
    """Every box and node of the forward and the backward is joined to others by values."""
    bundle = tmp_path / "net.ttac"
    ttac.compile(MODELS["resnet"], method="tent", output=bundle, batch=4)
    for name in ("forward", "backward"):
        with shown_file(bundle / f"{name}.onnx", folds=True) as file:
            graph = onnx.load(file, load_external_data=False).graph
        assert 3 < len(graph.node) <= folded_graph.MOST and any(node.domain == DOMAIN for node in graph.node)
        assert parts(graph) == 1, name
    with shown_file(bundle / "forward.onnx", folds=False) as file:
        assert file == bundle / "forward.onnx"


def parts(graph: onnx.GraphProto) -> int:
    """Number of parts of the graph that no value joins."""
    groups: list[set[str]] = []
    weights = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        names = ({*node.input} - weights) | {*node.output}
        joined = [group for group in groups if group & names]
        groups = [group for group in groups if group not in joined] + [names.union(*joined)]
    return len(groups)
