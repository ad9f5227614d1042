"""Values that cross from graph to graph before a reshape: engines copy a reshaped value that is an output."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.match import array_of, made_by
from ttac.passes.kernels.linked_graphs import ROOM, LinkedGraphs


def cross_before_reshapes(graphs: LinkedGraphs, outside: Collection[str]) -> None:
    """Hand over the input of a Reshape in place of its output, and let the later graphs reshape it, in place.

    Args:
        outside: names of outputs that anybody but a later graph reads; they stay.
    """
    models = list(graphs.models.values())
    for i, model in enumerate(models):
        for value in [value for value in model.graph.outputs if value.name not in outside]:
            node = made_by(value, "Reshape")
            if node is None or array_of(node.inputs[1]) is None or _is_input(node):
                continue
            for later in models[i + 1 :]:
                _reshape_in(graphs, later, value, node)
            model.graph.outputs.remove(value)


def _is_input(node: ir.Node) -> bool:
    """Whether the node reshapes an input of its graph or a constant."""
    return node.inputs[0] is None or node.inputs[0].producer() is None


def _reshape_in(graphs: LinkedGraphs, later: ir.Model, value: ir.Value, node: ir.Node) -> None:
    """Replace the input of the name of `value`, if the graph has one, by a Reshape as `node` is."""
    port = next((port for port in later.graph.inputs if port.name == value.name), None)
    shape = array_of(node.inputs[1])
    if port is None or node.inputs[0] is None or shape is None:
        return
    flat = graphs.read(later.graph, node.inputs[0])
    op = Builder(later.graph, ROOM, later.opset_imports[""])
    first = next(iter(later.graph), None)
    with op.at(node.metadata_props.get(LAYER, ""), before=first):
        attributes = {name: held.value for name, held in node.attributes.items()}
        shaped = op.Reshape(flat, shape, name=f"{value.name}.reshaped", like=port, **attributes)
    port.replace_all_uses_with(shaped)
    later.graph.inputs.remove(port)
