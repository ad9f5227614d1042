"""Let the engine's internal Conv also do the sum, the activation or the bounds that follow it."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.blocked.layout import DOMAIN, LayoutBuilder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.rewire import rename
from ttac.passes.graph.shapes import known_dims

STEEP = float(2**40)
"""Slope of a mask's edge: brings the distance of two neighbouring float32 near 3 to above 1."""


def fuse(op: LayoutBuilder) -> None:
    """Fuse Add, Relu, HardSigmoid, Clip and masks of Clip into the Conv that makes their input, in place."""
    graph = op.graph
    for node in list(graph):
        if node.op_type == "Add" and not node.domain:
            _fuse_sum(graph, node)
    for node in list(graph):
        if node.op_type == "Greater" and not node.domain:
            _read_rectified(graph, node)
    for node in list(graph):
        if node.op_type == "Cast" and not node.domain:
            _fuse_bounds(op, node)
    for node in list(graph):
        if node.op_type in ACTIVATIONS and not node.domain:
            _fuse_activation(graph, node)


def _conv_of(value: ir.Value | None, readers: int = 1) -> ir.Node | None:
    """The internal Conv that makes `value` for so many readers alone, and does nothing else yet."""
    node = value.producer() if value is not None else None
    if node is None or (node.domain, node.op_type) != (DOMAIN, "Conv") or "activation" in node.attributes:
        return None
    assert value is not None
    return node if len(value.uses()) == readers and not value.is_graph_output() else None


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


def _fuse_bounds(op: LayoutBuilder, node: ir.Node) -> None:
    """Cast(low < u < high) of u = conv(x): a steep HardSigmoid of |u - middle|, which the Conv itself computes.

    Comparisons and the cast take twice as long.  The masks differ only where u is a rounding error away from a bound.
    """
    if (bounds := _bounds(node)) is None:
        return
    u, low, high = bounds
    conv = _conv_of(u, readers=2)
    if conv is None or len(conv.inputs) < 3 or conv.inputs[2] is None:
        return
    middle, half = (low + high) / 2, (high - low) / 2
    with op.at(node.metadata_props.get(LAYER, ""), before=conv):
        offset = op.Sub(conv.inputs[2], middle)
    conv.replace_input_with(2, offset)
    conv.attributes["activation"] = ir.AttrString("activation", "LeakyRelu")
    conv.attributes["activation_params"] = ir.AttrFloat32s("activation_params", [-1.0])
    with op.at(node.metadata_props.get(LAYER, ""), before=node):
        mask = op.HardSigmoid(u, alpha=-STEEP, beta=half * STEEP)
    old = node.outputs[0]
    mask.shape, mask.type = old.shape, old.type
    both = node.inputs[0].producer() if node.inputs[0] is not None else None
    assert both is not None
    comparisons = [value.producer() for value in both.inputs if value is not None]
    old.replace_all_uses_with(mask)
    op.graph.remove([node, both, *(found for found in comparisons if found is not None)], safe=True)


def _bounds(node: ir.Node) -> tuple[ir.Value, float, float] | None:
    """u, low and high of Cast(And(Greater(u, low), Less(u, high))) to float32, if nothing else reads the masks."""
    both = node.inputs[0].producer() if node.inputs[0] is not None else None
    if both is None or both.op_type != "And" or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    above, below = (value.producer() if value is not None else None for value in both.inputs)
    if above is None or below is None or (above.op_type, below.op_type) != ("Greater", "Less"):
        return None
    masks = (above.outputs[0], below.outputs[0], both.outputs[0])
    if any(len(mask.uses()) != 1 or mask.is_graph_output() for mask in masks) or node.outputs[0].is_graph_output():
        return None
    u, low, high = above.inputs[0], _scalar(above.inputs[1]), _scalar(below.inputs[1])
    if u is None or u is not below.inputs[0] or low is None or high is None or not low < high:
        return None
    return u, low, high


def _scalar(value: ir.Value | None) -> float | None:
    """The one number of a constant; None for anything else."""
    held = value.const_value if value is not None else None
    return float(held.numpy().reshape(-1)[0]) if held is not None and held.size == 1 else None


ACTIVATIONS = ("Relu", "HardSigmoid", "Clip")


def _fuse_activation(graph: ir.Graph, node: ir.Node) -> None:
    conv = _conv_of(node.inputs[0])
    if conv is None:
        return
    attributes = {**conv.attributes, "activation": ir.AttrString("activation", node.op_type)}
    if node.op_type == "HardSigmoid":
        numbers = [node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)]
        attributes["activation_params"] = ir.AttrFloat32s("activation_params", numbers)
    if node.op_type == "Clip":
        bounds = [_scalar(value) for value in node.inputs[1:]]
        if len(bounds) != 2 or None in bounds:
            return
        attributes["activation_params"] = ir.AttrFloat32s(
            "activation_params", [float(b) for b in bounds if b is not None]
        )
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
    rename(old, new)
    made.name = new.name
    graph.remove([node], safe=True)
    graph.remove([conv], safe=True)
