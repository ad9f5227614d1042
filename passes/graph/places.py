"""Places for errors: a node or a value as the file calls it, with the layer that a person knows it by.

Exporters number nodes and values, `node_conv2d_12` and `getitem_7`; the layer is the module of the source network.
"""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.layer_names import layer_name


def node_place(node: ir.Node) -> str:
    """Return "node `node_conv2d_12` (Conv) of layer `stem.conv`"; without the layer where the name says it."""
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    layer = _layer(node)
    return f"node `{node.name}` ({operator})" + (f" of layer `{layer}`" if layer else "")


def value_place(value: ir.Value | None) -> str:
    """Return "`getitem_7` (an output of layer `stem.bn`)"; without a layer if the name says it."""
    if value is None:
        return "``"
    producer = value.producer()
    layer = _layer(producer) if producer is not None else ""
    known = not layer or str(value.name).replace("/", ".").strip(".").startswith(layer)
    return f"`{value.name}`" + ("" if known else f" (an output of layer `{layer}`)")


def _layer(node: ir.Node) -> str:
    """Return the layer of a node; empty where the node's name, or that of its first output, is the layer's."""
    layer = node.metadata_props.get(LAYER) or layer_name(node)
    own = {str(name).strip("/").replace("/", ".") for name in (node.name, node.outputs[0].name) if name}
    return "" if layer in own or layer == node.op_type else layer
