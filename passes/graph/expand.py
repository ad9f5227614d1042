"""Write every ttac operator of a graph out in standard operators."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import COMPOSITES, DOMAIN
from ttac.passes.graph.keys import LAYER


def expand_all(model: ir.Model, room: str = "lower", opset: int | None = None) -> ir.Model:
    """Replace every ttac operator of `model` by standard ones, in place, until none is left."""
    op = Builder(model.graph, room, opset or model.opset_imports.get("", 18))
    # Readers first: how one is best spelled may depend on the ttac operator that makes its input.
    while pending := [node for node in model.graph if node.domain == DOMAIN]:
        for node in reversed(pending):
            with op.at(node.metadata_props.get(LAYER, ""), before=node):
                made = COMPOSITES[node.op_type].expand(op, node)
                _replace(op, node, made if isinstance(made, tuple) else (made,))
        model.graph.remove(pending, safe=True)
    model.opset_imports.pop(DOMAIN, None)
    return model


def _replace(op: Builder, node: ir.Node, made: tuple[ir.Value, ...]) -> None:
    """Put the values `made` in the place of the node's outputs, under their names, and cut the node off.

    It is removed later, all at once: each removal looks through all outputs of the graph.
    What the expansion only passed on (an input, an initializer, a value twice) keeps its own name.
    """
    taken = {id(value) for value in node.inputs}
    for old, new in zip(node.outputs, made, strict=True):
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
