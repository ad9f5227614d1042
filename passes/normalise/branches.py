"""Write an If as nodes of the graph: one branch where shapes and constants decide, else both branches and a Where.

Exporters write a branch where a model asks for a rank or a size: torch's `squeeze`, or an optional state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.places import node_place
from ttac.passes.graph.rewire import nodes_before
from ttac.passes.normalise.batch_walk import Walk, rewrites

BRANCHES = ("then_branch", "else_branch")


@rewrites("If")
def _if(walk: Walk, node: ir.Node) -> None:
    """Put one branch in the place of the If, or both and a Where for each output; visit the new nodes.

    The file decides once for a batch.  The Where decides for each sample if the condition has a value for each sample.

    Raises UnsupportedError where the data decide, and the branches differ in shape or a whole batch takes one branch.
    """
    condition = walk.fixed_data(node, 0)
    chosen = BRANCHES if condition is None or condition.size != 1 else BRANCHES[:1] if condition.all() else BRANCHES[1:]
    results = [spliced(walk, node, node.attributes[name].as_graph()) for name in chosen]
    joined = results[0] if len(results) == 1 else [_either(walk, node, *pair) for pair in zip(*results, strict=True)]
    replace_outputs(walk, node, joined)


def replace_outputs(walk: Walk, node: ir.Node, results: Sequence[ir.Value]) -> None:
    """Put `results` in the place of the outputs of `node`, under the names of the outputs, and remove the node."""
    graph = walk.graph
    for old, result in zip(node.outputs, results, strict=True):
        passed = ir.node("Identity", [result], name=f"{node.name}.{old.name}", metadata_props=dict(node.metadata_props))
        passed.outputs[0].type = old.type
        graph.insert_before(node, passed)
        name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, passed.outputs[0], replace_graph_outputs=True)
        passed.outputs[0].name = name
        walk.visit(passed)
    graph.remove(node, safe=True)


def control_flow(nodes: Sequence[ir.Node]) -> UnsupportedError:
    """Return the error for loops, and for branches of different shapes."""
    return UnsupportedError(
        f"control flow that depends on the input: {', '.join(sorted({f'`{node.op_type}`' for node in nodes}))}",
        where="\n     ".join(node_place(node) for node in nodes[:8]),
        hint="export a model without loops and branches on values; loops whose turns a constant bounds are unrolled",
    )


def spliced(walk: Walk, node: ir.Node, branch: ir.Graph) -> list[ir.Value]:
    """Move the nodes of `branch` in front of `node`, and visit them; return the values of its outputs."""
    graph, results, nodes = walk.graph, list(branch.outputs), list(branch)
    _rename(branch, _names(graph), str(node.name))
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        graph.register_initializer(value)
    branch.outputs.clear()
    branch.remove(nodes)
    passed = [ir.node("Identity", [result], name=f"{node.name}.result") for result in results]
    graph.insert_before(node, [*nodes, *passed])
    for inner in [*nodes, *passed]:
        inner.name = inner.name or str(inner.outputs[0].name)
        walk.visit(inner)
    return [identity.outputs[0] for identity in passed]


def _names(graph: ir.Graph) -> set[str]:
    """Return the names of the values of `graph`, without those of subgraphs."""
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    return {str(value.name) for value in values}


def _rename(branch: ir.Graph, taken: set[str], prefix: str) -> None:
    """Give the values of `branch` names that `taken` does not contain; another If may have the same names."""
    for value in [*branch.initializers.values(), *(value for node in branch for value in node.outputs)]:
        if value.name in taken:
            value.name = f"{prefix}.{value.name}"


def _either(walk: Walk, node: ir.Node, first: ir.Value, second: ir.Value) -> ir.Value:
    """Return `first` where the condition of the If holds, else `second`.

    Raises UnsupportedError where their shapes differ, or where all samples of a batch decide together.
    """
    condition, known = node.inputs[0], walk.of(first)
    assert condition is not None
    if known.shapes is None or known.shapes != walk.of(second).shapes or is_of_whole_batch(walk, condition):
        raise control_flow([node])
    with walk.op.at(node.metadata_props.get(LAYER, ""), before=node):
        rows = walk.of(condition).axis is not None
        target = [-1 if axis == known.axis else 1 for axis in range(len(known.shapes[0]))] if rows else []
        whole = walk.op.Reshape(condition, np.array(target, np.int64), name=f"{node.name}.condition")
        result = walk.op.Where(whole, first, second, name=f"{node.name}.either")
    for value in (whole, result):
        walk.visit_producer(value)
    walk.note(node)
    return result


def is_of_whole_batch(walk: Walk, condition: ir.Value) -> bool:
    """Whether one condition for all samples depends on an input with an axis of samples."""
    read = [condition, *(value for node in nodes_before(condition) for value in node.inputs if value is not None)]
    return walk.of(condition).axis is None and any(v.is_graph_input() and walk.of(v).axis is not None for v in read)
