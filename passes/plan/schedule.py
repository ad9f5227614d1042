"""The order of the nodes in a file.

Engines that follow this order free tensors early, so the order decides how many tensors are alive at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import onnx_ir as ir

from ttac.passes.graph.keys import ROOM_KEY
from ttac.passes.graph.shapes import sample_size
from ttac.passes.plan.needs_gradient import needs_gradient

Rank = tuple[int, int]


def encode_early(graph: ir.Graph, room: str = "autodiff") -> None:
    """Move each node that `room` added to a forward graph (masks, encoders) behind its last input, in place."""
    ordered = early_order(graph, room)
    graph.remove(ordered)
    graph.extend(ordered)


def early_order(nodes: Iterable[ir.Node], room: str = "autodiff") -> list[ir.Node]:
    """Return the `nodes` of a forward with each node of `room` directly behind its last input."""
    rank: dict[ir.Node, Rank] = {}
    for index, node in enumerate(nodes):
        inputs = [rank[p] for v in node.inputs if v is not None and (p := v.producer()) in rank and p is not None]
        added = node.metadata_props.get(ROOM_KEY) == room
        rank[node] = (max(inputs, default=(0, 0))[0], index) if added else (index, index)
    return sorted(rank, key=lambda node: rank[node])


def recompute_late(graph: ir.Graph) -> None:
    """Move each recomputed node of a backward graph in front of its first reader, in place.

    Nodes that need a gradient keep their order, with two exceptions.  The gradient of a kernel and the gradient of an
    input both read one gradient.  Each of these nodes moves back if its input has fewer bytes than its output.
    """
    nodes = list(graph)
    gradient_nodes = needs_gradient(nodes)
    rank: dict[ir.Node, Rank] = {}
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        readers = [rank[use.node][0] for value in node.outputs for use in value.uses()]
        if node.op_type == "ConvWeightGrad":
            positions = [max(_decoded_for(node, gradient_nodes, rank), default=index), *readers]
        else:
            positions = readers if node not in gradient_nodes or _grows(node) else [index]
        rank[node] = (min(positions, default=index), index)
    _sort(graph, rank)


def _grows(node: ir.Node) -> bool:
    """Whether `node` computes an input gradient that is larger than the gradient that `node` reads.

    The gradient of a strided shortcut is such a node: its output would wait for the whole other branch.
    """
    if node.op_type != "ConvInputGrad" or len(node.outputs[0].uses()) != 1:
        return False
    dy = node.inputs[0]
    assert dy is not None and dy.shape is not None and node.outputs[0].shape is not None
    return sample_size(node.outputs[0].shape) > sample_size(dy.shape)


def _decoded_for(node: ir.Node, gradient_nodes: Set[ir.Node], rank: Mapping[ir.Node, Rank]) -> list[int]:
    """Return the positions of later kernel gradients that read the same decoded input, if that input is the larger one.

    The shortcut and the first layer of a block both read the block's input.  Decoded once for both, the input would
    stay alive for all layers between.
    """
    x, dy = node.inputs
    assert x is not None and dy is not None and x.shape is not None and dy.shape is not None
    if x.producer() is None or x.producer() in gradient_nodes or sample_size(dy.shape) > sample_size(x.shape):
        return []
    return [rank[use.node][0] for use in x.uses() if use.node.op_type == "ConvWeightGrad" and use.node in rank]


def _sort(graph: ir.Graph, rank: dict[ir.Node, Rank]) -> None:
    ordered = sorted(graph, key=lambda node: rank[node])
    graph.remove(ordered)
    graph.extend(ordered)
