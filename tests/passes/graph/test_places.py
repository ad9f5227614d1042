"""Errors name the layer beside the numbers of an exporter."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.graph.places import node_place, value_place

TEXT = """
<ir_version: 9, opset_import: ["" : 18]>
main (float[N, 4] x) => (float[N, 4] y)
<float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}>
{
  [node_matmul_3] getitem_7 = MatMul (x, w)
  [tail] y = Relu (getitem_7)
}
"""


def nodes() -> list[ir.Node]:
    graph = ir.from_onnx_text(TEXT).graph
    graph.initializers["w"].name = "stem.fc.weight"
    return list(graph)


def test_numbered_names_have_their_layer() -> None:
    matmul, _ = nodes()
    assert node_place(matmul) == "node `node_matmul_3` (MatMul) of layer `stem.fc`"
    assert value_place(matmul.outputs[0]) == "`getitem_7` (an output of layer `stem.fc`)"


def test_names_that_say_it_stand_alone() -> None:
    matmul, relu = nodes()
    assert node_place(relu) == "node `tail` (Relu)"
    matmul.name, matmul.outputs[0].name = "/stem/fc", "/stem/fc/MatMul_output_0"
    assert node_place(matmul) == "node `/stem/fc` (MatMul)"
    assert value_place(matmul.outputs[0]) == "`/stem/fc/MatMul_output_0`"
    assert value_place(matmul.inputs[0]) == "`x`" and value_place(None) == "``"
