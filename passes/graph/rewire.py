"""Rewire a graph: add constants, put one value in the place of another, and find nodes before and after."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a constant with the contents of `array`; no other constant of the graph may have the name."""
    value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name))
    graph.register_initializer(value)
    return value


def replace(graph: ir.Graph, node: ir.Node, value: ir.Value | None) -> None:
    """Let all readers of the first output of `node` read `value` instead, and remove the node.

    A graph output keeps its name. It gets an Identity where `value` cannot take the name.
    """
    assert value is not None
    (old, *_) = node.outputs
    if old.is_graph_output():
        if value.is_graph_input() or value.is_graph_output() or value.const_value is not None:
            return _pass_on(graph, node, value)
        name, value.type = old.name, old.type or value.type
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        value.name = name
    else:
        old.replace_all_uses_with(value)
    graph.remove(node, safe=True)


def rename(old: ir.Value, new: ir.Value) -> None:
    """Let everybody who reads `old` read `new`, under the name of `old`."""
    name, old.name = old.name, f"{old.name}.replaced"
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name


def _pass_on(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    if node.op_type == "Identity":
        return
    (old, *_) = node.outputs
    identity = ir.node("Identity", [value], name=node.name, metadata_props=dict(node.metadata_props))
    graph.insert_before(node, identity)
    name, identity.outputs[0].type = old.name, old.type
    ir.convenience.replace_all_uses_with(old, identity.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    identity.outputs[0].name = name


def node_after(graph: ir.Graph, node: ir.Node | None) -> ir.Node | None:
    """Return the node that runs after `node`, None behind the last one; the first node of the graph for None."""
    nodes = list(graph)
    position = 0 if node is None else nodes.index(node) + 1
    return nodes[position] if position < len(nodes) else None


def nodes_before(output: ir.Value) -> list[ir.Node]:
    """Return the nodes that lead to `output`, with the nodes of their subgraphs."""
    pending, nodes = [output.producer()], dict[ir.Node, None]()
    while pending:
        node = pending.pop()
        if node is None or node in nodes:
            continue
        nodes[node] = None
        pending += [value.producer() for value in node.inputs if value is not None]
        graphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        pending += [inner for graph in graphs for inner in ir.traversal.RecursiveGraphIterator(graph)]
    return list(nodes)
