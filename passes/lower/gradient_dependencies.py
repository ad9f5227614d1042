"""Gradient dependencies: large inputs of a backward graph wait, as data, for the gradient that their result meets.

An engine that follows the file's order needs no dependency.  The engine's optimisations break that order: a convolution
in a blocked layout is a new node, and new nodes come last.  The engine would then run all nodes that need only
residuals before the first gradient: masks, decoded and normalised maps.  The engine would hold all results
(docs/decisions/engine-memory.md).
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

ROOM = "dependencies"


def add_gradient_dependencies(model: ir.Model, available: Set[str], batch: int) -> None:
    """Let every large input wait for the gradient that the results of the input meet, in place.

    `available` names the inputs that exist before the first gradient: residuals, parameters and the inputs of the
    forward.  `model` is a graph of standard operators in the order of its file.
    """
    graph = model.graph
    nodes = list(graph)
    position = {node: index for index, node in enumerate(nodes)}
    after_gradient = _after_gradient(graph, available)
    meeting = _meeting_nodes(nodes, after_gradient, position)
    op = Builder(graph, ROOM, model.opset_imports[""])
    dependent: dict[tuple[ir.Value, ir.Value], ir.Value] = {}
    for node in nodes:
        gradient = _last_gradient(meeting[node], after_gradient, position, position[node]) if node in meeting else None
        for index, value in enumerate(node.inputs):
            if gradient is None or value is None or not value.is_graph_input() or not _may_be_large(value, batch):
                continue
            if (value, gradient) not in dependent:
                with op.at(node.metadata_props.get(LAYER, ""), before=node):
                    dependent[value, gradient] = after(op, value, gradient)
            node.replace_input_with(index, dependent[value, gradient])
    name_nodes(model)


def _after_gradient(graph: ir.Graph, available: Set[str]) -> set[ir.Node]:
    """The nodes that follow from a gradient: from the loss, or from an input that is not `available`."""
    following = needs_gradient(list(graph))
    for node in graph:
        inputs = [v for v in node.inputs if v is not None]
        if any(v.producer() in following or (v.is_graph_input() and v.name not in available) for v in inputs):
            following.add(node)
    return following


def _meeting_nodes(
    nodes: list[ir.Node], after_gradient: Set[ir.Node], position: dict[ir.Node, int]
) -> dict[ir.Node, ir.Node]:
    """For each node outside `after_gradient`, the first node of `after_gradient` that follows from the node."""
    meeting: dict[ir.Node, ir.Node] = {}
    for node in reversed(nodes):
        if node not in after_gradient:
            readers = [use.node for value in node.outputs for use in value.uses()]
            met = [reader if reader in after_gradient else meeting.get(reader) for reader in readers]
            if candidates := [reader for reader in met if reader is not None]:
                meeting[node] = min(candidates, key=lambda reader: position[reader])
    return meeting


def _last_gradient(
    reader: ir.Node, after_gradient: Set[ir.Node], position: dict[ir.Node, int], end: int
) -> ir.Value | None:
    """The last input of `reader` that a node of `after_gradient` in front of position `end` makes."""
    makers = [(v.producer(), v) for v in reader.inputs if v is not None]
    gradients = [
        (position[maker], v) for maker, v in makers if maker in after_gradient and maker and position[maker] < end
    ]
    return max(gradients, key=lambda pair: pair[0])[1] if gradients else None


def _may_be_large(value: ir.Value, batch: int) -> bool:
    """Whether a tensor computed from `value` may be large: an input of packed bits has a 32nd of the tensor's bytes."""
    return bool(value.shape) and (SAMPLE_BYTES in value.meta or nbytes(value, batch) > SMALL_BYTES // 32)
