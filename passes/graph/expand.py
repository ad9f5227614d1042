"""Expand every ttac operator of a graph into standard operators."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import COMPOSITES, DOMAIN
from ttac.passes.graph.keys import LAYER


def expand_all(model: ir.Model, room: str = "lower", opset: int | None = None) -> ir.Model:
    """Replace every ttac operator of `model` by standard operators, in place, until none is left."""
    op = Builder(model.graph, room, opset or model.opset_imports.get("", 18))
    # Readers first: the best expansion of a reader may depend on the ttac operator that produces its input.
    while pending := [node for node in model.graph if node.domain == DOMAIN]:
        for node in reversed(pending):
            with op.at(node.metadata_props.get(LAYER, ""), before=node):
                values = COMPOSITES[node.op_type].expand(op, node)
                _replace(op, node, values if isinstance(values, tuple) else (values,))
        model.graph.remove(pending, safe=True)
    model.opset_imports.pop(DOMAIN, None)
    return model


def _replace(op: Builder, node: ir.Node, replacements: tuple[ir.Value, ...]) -> None:
    """Put `replacements` in the place of the node's outputs, under their names, and cut the node off its inputs.

    The caller removes all such nodes at once, because each removal searches all outputs of the graph. A value that
    the expansion only passes on (an input, an initializer, a value twice) keeps its own name.
    """
    taken = {id(value) for value in node.inputs}
    for old, new in zip(node.outputs, replacements, strict=True):
        passed_on = new.producer() is None or id(new) in taken
        if passed_on and old.is_graph_output():
            new, passed_on = op.Identity(new), False
        taken.add(id(new))
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if not passed_on:
            new.type, new.shape, new.name = old.type, old.shape, name
            new.metadata_props.update(old.metadata_props)
    for position in range(len(node.inputs)):
        node.replace_input_with(position, None)
