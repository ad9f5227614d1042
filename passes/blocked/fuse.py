"""Let the engine's internal Conv also do the sum and the activation that follow it."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.blocked.layout import DOMAIN, known_dims


def fuse(graph: ir.Graph) -> None:
    """Fuse Add, Relu and HardSigmoid into the Conv that makes their input, in place."""
    for node in list(graph):
        if node.op_type == "Add" and not node.domain:
            _fuse_sum(graph, node)
    for node in list(graph):
        if node.op_type == "Greater" and not node.domain:
            _read_rectified(graph, node)
    for node in list(graph):
        if node.op_type in ("Relu", "HardSigmoid") and not node.domain:
            _fuse_activation(graph, node)


def _conv_of(value: ir.Value | None) -> ir.Node | None:
    """The internal Conv that makes `value` for one reader alone, and does nothing else yet."""
    node = value.producer() if value is not None else None
    if node is None or (node.domain, node.op_type) != (DOMAIN, "Conv") or "activation" in node.attributes:
        return None
    assert value is not None
    return node if len(value.uses()) == 1 and not value.is_graph_output() else None


def _fuse_sum(graph: ir.Graph, node: ir.Node) -> None:
    """Add(conv(x), y): the Conv adds y; it moves to the place of the Add, where y is there."""
    first, second = node.inputs
    if first is None or second is None or first is second or known_dims(first) != known_dims(second):
        return
    for value, other in ((second, first), (first, second)):
        conv = _conv_of(value)
        if conv is not None and len(conv.inputs) < 4:
            inputs = [*conv.inputs, *([None] * (3 - len(conv.inputs))), other]
            _replace(graph, node, conv, inputs, dict(conv.attributes))
            return


def _read_rectified(graph: ir.Graph, node: ir.Node) -> None:
    """Greater(x, 0) reads Relu(x) where that is there: then x needs no room."""
    x, zero = node.inputs
    if x is None or zero is None or zero.const_value is None or (zero.const_value.numpy() != 0).any():
        return
    relu = next((use.node for use in x.uses() if use.node.op_type == "Relu" and not use.node.domain), None)
    if relu is not None:
        graph.remove(relu)
        graph.insert_before(node, relu)
        node.replace_input_with(0, relu.outputs[0])


def _fuse_activation(graph: ir.Graph, node: ir.Node) -> None:
    conv = _conv_of(node.inputs[0])
    if conv is None:
        return
    attributes = {**conv.attributes, "activation": ir.AttrString("activation", node.op_type)}
    if node.op_type == "HardSigmoid":
        numbers = [node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)]
        attributes["activation_params"] = ir.AttrFloat32s("activation_params", numbers)
    _replace(graph, node, conv, list(conv.inputs), attributes)


def _replace(
    graph: ir.Graph, node: ir.Node, conv: ir.Node, inputs: list[ir.Value | None], attributes: dict[str, ir.Attr]
) -> None:
    """Put a Conv with these `inputs` and `attributes` in the place of `node`, and remove `conv`."""
    made = ir.Node(DOMAIN, "Conv", inputs, list(attributes.values()), num_outputs=1)
    new, old = made.outputs[0], node.outputs[0]
    new.type, new.shape = old.type, old.shape
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    made.metadata_props.update(node.metadata_props)
    graph.insert_before(node, made)
    name, old.name = old.name, f"{old.name}.replaced"
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = made.name = name
    graph.remove([node], safe=True)
    graph.remove([conv], safe=True)
