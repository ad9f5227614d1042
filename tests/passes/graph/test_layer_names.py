"""Layers: the names that nodes get, and the traces that folded norms leave."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from ttac.passes.graph.layer_names import folded_norm, layer_name, unique


def node_of(op_type: str, name: str, *inputs: str, **metadata: str) -> ir.Node:
    values = [
        ir.val(i, const_value=ir.tensor(np.ones(1, np.float32)) if "." in i or ":" in i else None) for i in inputs
    ]
    node = ir.node(op_type, values, name=name)
    node.metadata_props.update({key.replace("_DOT_", "."): value for key, value in metadata.items()})
    return node


@pytest.mark.parametrize(
    ("op_type", "name", "inputs", "layer"),
    [
        ("BatchNormalization", "node_5", ["x", "layer1.0.bn1.weight"], "layer1.0.bn1"),
        ("Conv", "/conv/Conv", ["x", "onnx::Conv_17", "onnx::Conv_18"], "conv"),
        ("BatchNormalization", "/layer1/layer1.0/bn1/BatchNormalization", ["x"], "layer1.0.bn1"),
        ("Conv", "/features/features.0/features.0.0/Conv", ["x"], "features.0.0"),
        ("Conv", "/layer2/layer2.0/down/down.0/Conv", ["x"], "layer2.0.down.0"),
        ("Relu", "/layer1/layer1.0/Relu_1", ["x"], "layer1.0.relu_1"),
        ("BatchNormalization", "resnet50/conv1_bn/FusedBatchNormV3", ["x"], "resnet50.conv1_bn"),
        ("Relu", "/Relu", ["x"], "relu"),
        ("Add", "Add_17", ["x"], "Add_17"),
    ],
)
def test_layers_have_the_names_people_know(op_type: str, name: str, inputs: list[str], layer: str) -> None:
    assert layer_name(node_of(op_type, name, *inputs)) == layer


def test_a_shared_parameter_names_nobody() -> None:
    """Exporters merge equal tensors of different layers; the running statistics usually still differ."""
    shared, own = (
        ir.val("bn1.weight", const_value=ir.tensor([1.0])),
        ir.val("bn2.running_mean", const_value=ir.tensor([2.0])),
    )
    first = ir.node("BatchNormalization", [ir.val("x"), shared], name="/a/bn1/BatchNormalization")
    second = ir.node("BatchNormalization", [ir.val("z"), shared, shared, own], name="n")
    assert layer_name(first) == "a.bn1" and layer_name(second) == "bn2"


def test_dynamo_exports_tell_their_scopes() -> None:
    scopes = {"pkg.torch.onnx.name_scopes": "['', 'layer1', 'layer1.0', 'layer1.0.bn1', 'batch_norm']"}
    norm_node, relu = node_of("LayerNormalization", "n", "x"), node_of("Relu", "r", "x")
    norm_node.metadata_props.update(scopes)
    relu.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'layer1', 'layer1.0', 'relu_1']"
    assert layer_name(norm_node) == "layer1.0.bn1" and layer_name(relu) == "layer1.0.relu_1"
    norm_node.metadata_props["pkg.torch.onnx.name_scopes"] = "not a list"
    assert layer_name(norm_node) == "n"


def test_folded_norms_leave_traces() -> None:
    fused = node_of("Conv", "n", "x", "conv1.weight", "conv1.weight_bias")
    fused.metadata_props["pkg.onnxscript.rewriter.rule_name"] = "FuseBatchNormIntoConv, RemoveOptionalBiasFromConv"
    assert folded_norm(fused) == "?"
    fused.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'bn1', 'batch_norm']"
    assert folded_norm(fused) == "bn1"
    assert folded_norm(node_of("Conv", "n", "x", "onnx::Conv_17", "onnx::Conv_18")) == "?"
    assert folded_norm(node_of("Conv", "n", "x", "conv.weight", "conv.bias")) == ""


def test_a_taken_name_is_counted_up() -> None:
    assert unique("bn", {"bn", "bn@2"}) == "bn@3" and unique("bn", {"cn"}) == "bn"


@pytest.mark.parametrize("text", ["None", "b'ab'", "1", "{'a': 1}", "(" * 9999, "not a list"])
def test_scopes_that_are_no_list_count_as_none(text: str) -> None:
    node = node_of("Relu", "/layer1/Relu", "x", pkg_DOT_torch_DOT_onnx_DOT_name_scopes=text)
    assert layer_name(node) == "layer1.relu"
