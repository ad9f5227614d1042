"""The two parts of a joint graph: nodes that need a gradient, and nodes that the backward may also run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

import onnx_ir as ir

from ttac.passes.graph.keys import SEED


def needs_gradient(nodes: Sequence[ir.Node]) -> set[ir.Node]:
    """Return the nodes that follow from the seed `<loss>.grad`: they can only run after the loss."""
    following: set[ir.Node] = set()
    for node in nodes:
        if any(v is not None and (v.producer() in following or _is_seed(v)) for v in node.inputs):
            following.add(node)
    return following


def _is_seed(value: ir.Value) -> bool:
    return value.metadata_props.get(SEED) == "true"


def backward_nodes(gradient_nodes: Set[ir.Node], cut: Iterable[ir.Value], free: Set[int]) -> set[ir.Node]:
    """Return `gradient_nodes` and all nodes that the backward recomputes from the kept values `cut`."""
    return set(gradient_nodes) | ancestors(gradient_nodes, {*free, *(id(value) for value in cut)})


def ancestors(gradient_nodes: Set[ir.Node], free: Set[int]) -> set[ir.Node]:
    """Return the nodes outside `gradient_nodes` on which a gradient depends, up to the values with ids in `free`."""
    earlier: set[ir.Node] = set()
    pending = list(gradient_nodes)
    while pending:
        for source in computed_inputs(pending.pop(), free):
            producer = source.producer()
            if producer is not None and producer not in gradient_nodes and producer not in earlier:
                earlier.add(producer)
                pending.append(producer)
    return earlier


def computed_inputs(node: ir.Node, free: Set[int]) -> list[ir.Value]:
    """Return the inputs of `node` that a node computes and that are not free."""
    return [v for v in node.inputs if v is not None and v.producer() is not None and id(v) not in free]


def read_by_gradients(gradient_nodes: Set[ir.Node], nodes: Sequence[ir.Node]) -> list[ir.Value]:
    """Return the computed values that a gradient node reads and that need no gradient, in order of first use."""
    seen: dict[ir.Value, None] = {}
    for node in nodes:
        if node in gradient_nodes:
            for value in node.inputs:
                if value is not None and value.producer() not in gradient_nodes and value.producer() is not None:
                    seen.setdefault(value)
    return list(seen)
