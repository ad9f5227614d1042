"""The order of a backward graph as data: what is computed from residuals alone waits for the gradient it is needed for.

An engine that follows the file's order needs no such thing, but its optimisations break that order: convolutions in a
blocked layout are new nodes, and come last.  Everything that needs residuals only (masks, restored and normalised maps)
would then be computed before the first gradient, and all of it be held (docs/decisions/engine-memory.md).
"""

from __future__ import annotations

from collections.abc import Set

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER, SAMPLE_BYTES
from ttac.passes.graph.reshaping import after
from ttac.passes.lower.lower import name_nodes
from ttac.passes.plan.decisions import SMALL_BYTES, nbytes
from ttac.passes.plan.needs_gradient import needs_gradient

ROOM = "waits"


def wait_for_gradients(model: ir.Model, given: Set[str], batch: int) -> None:
    """Let every large tensor that follows from the inputs `given` alone wait for the gradient it is combined with.

    In place, on a graph of standard operators in the order of its file.
    """
    graph = model.graph
    nodes = list(graph)
    position = {node: index for index, node in enumerate(nodes)}
    late = _late(graph, given)
    first = _first_late_reader(nodes, late, position)
    op = Builder(graph, ROOM, model.opset_imports[""])
    waiting: dict[tuple[ir.Value, ir.Value], ir.Value] = {}
    for node in nodes:
        gradient = _latest(first[node], late, position, position[node]) if node in first else None
        for index, value in enumerate(node.inputs):
            if gradient is None or value is None or not value.is_graph_input() or not _is_worth_it(value, batch):
                continue
            if (value, gradient) not in waiting:
                with op.at(node.metadata_props.get(LAYER, ""), before=node):
                    waiting[value, gradient] = after(op, value, gradient)
            node.replace_input_with(index, waiting[value, gradient])
    name_nodes(model)


def _late(graph: ir.Graph, given: Set[str]) -> set[ir.Node]:
    """The nodes that follow from a gradient: from an input that is not `given`, or from the loss."""
    late = needs_gradient(list(graph))
    for node in graph:
        made = [v for v in node.inputs if v is not None]
        if any(v.producer() in late or (v.is_graph_input() and v.name not in given) for v in made):
            late.add(node)
    return late


def _first_late_reader(
    nodes: list[ir.Node], late: Set[ir.Node], position: dict[ir.Node, int]
) -> dict[ir.Node, ir.Node]:
    """For each node outside `late`, the first node in it that reads what follows from it."""
    first: dict[ir.Node, ir.Node] = {}
    for node in reversed(nodes):
        if node not in late:
            readers = [use.node for value in node.outputs for use in value.uses()]
            found = [reader if reader in late else first.get(reader) for reader in readers]
            if there := [reader for reader in found if reader is not None]:
                first[node] = min(there, key=lambda reader: position[reader])
    return first


def _latest(reader: ir.Node, late: Set[ir.Node], position: dict[ir.Node, int], end: int) -> ir.Value | None:
    """The gradient that `reader` combines with what waits, if a node in front of position `end` makes it."""
    makers = [(v.producer(), v) for v in reader.inputs if v is not None]
    made = [(position[maker], v) for maker, v in makers if maker in late and maker and position[maker] < end]
    return max(made, key=lambda pair: pair[0])[1] if made else None


def _is_worth_it(value: ir.Value, batch: int) -> bool:
    """Whether what follows from `value` may be large; of a mask as bits only the 32nd part crosses."""
    return bool(value.shape) and (SAMPLE_BYTES in value.meta or nbytes(value, batch) > SMALL_BYTES // 32)
