"""The order of nodes in a file: engines that follow it free tensors early, so it decides how many are alive at once."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.batch import sample_size
from ttac.passes.plan import downstream_of_gradient

Rank = tuple[int, int]


def save_early(graph: ir.Graph, room: str = "autodiff") -> None:
    """Move what `room` added to a forward graph (masks, saves) right behind the last value it reads, in place."""
    rank: dict[ir.Node, Rank] = {}
    for index, node in enumerate(graph):
        made = [rank[p] for v in node.inputs if v is not None and (p := v.producer()) in rank and p is not None]
        added = node.metadata_props.get("ttac.room") == room
        rank[node] = (max(made, default=(0, 0))[0], index) if added else (index, index)
    _sort(graph, rank)


def recompute_late(graph: ir.Graph, room: str = "autodiff") -> None:
    """Move what a backward graph computes again right before its first reader, in place.

    The gradient itself, what depends on it, keeps its order.
    """
    nodes = list(graph)
    late = downstream_of_gradient(nodes)
    rank: dict[ir.Node, Rank] = {}
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        readers = [rank[use.node] for value in node.outputs for use in value.uses()]
        waits = node not in late or _grows(node)
        rank[node] = (min(readers, default=(index, index))[0] if waits else index, index)
    _sort(graph, rank)


def _grows(node: ir.Node) -> bool:
    """Whether it is better to hold what the node reads than what it writes, until that is wanted.

    The gradient of a strided shortcut is larger than the one it is made from, and waits for all of the other branch.
    """
    if node.op_type != "ConvInputGrad" or len(node.outputs[0].uses()) != 1:
        return False
    dy = node.inputs[0]
    assert dy is not None and dy.shape is not None and node.outputs[0].shape is not None
    return len(dy.uses()) == 1 and sample_size(node.outputs[0].shape) > sample_size(dy.shape)


def _sort(graph: ir.Graph, rank: dict[ir.Node, Rank]) -> None:
    ordered = sorted(graph, key=lambda node: rank[node])
    graph.remove(ordered)
    graph.extend(ordered)
