"""The few operators ttac adds to ONNX while it compiles; `lower` writes each out in standard operators.

A composite exists where a gradient is cheaper as one formula than as the sum of its primitives' gradients, or where the
best spelling depends on the target.  Each states its output types (`types`) and its meaning in ONNX (`expand`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

if TYPE_CHECKING:
    from ttac.passes.build import Builder

DOMAIN = "ttac"
Types = list[tuple[ir.DataType | None, ir.Shape | None]]


@dataclass(frozen=True)
class Composite:
    """One operator of the vocabulary.

    `types(node)` gives (dtype, shape) per output; `expand(op, node)` builds the standard nodes and returns the values
    that replace the node's outputs, a Value or a tuple of them.
    """

    name: str
    outputs: int
    types: Callable[[ir.Node], Types]
    expand: Callable[[Builder, ir.Node], Any]


COMPOSITES: dict[str, Composite] = {}


def composite(name: str, types: Callable[[ir.Node], Types], outputs: int = 1) -> Callable[..., Any]:
    """Register the decorated function as the expansion of `ttac::name`."""

    def register(expand: Callable[[Builder, ir.Node], Any]) -> Callable[[Builder, ir.Node], Any]:
        COMPOSITES[name] = Composite(name, outputs, types, expand)
        return expand

    return register


def like(position: int) -> Callable[[ir.Node], Types]:
    """One output with dtype and shape of the input at `position`."""

    def types(node: ir.Node) -> Types:
        value = node.inputs[position]
        assert value is not None
        return [(value.dtype, value.shape)]

    return types


def per_channel(outputs: int = 1) -> Callable[[ir.Node], Types]:
    """`outputs` vectors [C], with dtype and C of the first input, which is [N, C, ...]."""

    def types(node: ir.Node) -> Types:
        value = node.inputs[0]
        assert value is not None and value.shape is not None
        return [(value.dtype, ir.Shape([value.shape[1]]))] * outputs

    return types


def expand_all(model: ir.Model, room: str = "lower", opset: int | None = None) -> ir.Model:
    """Replace every ttac operator of `model` by standard ones, in place, until none is left."""
    from ttac.passes.build import LAYER, Builder

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
