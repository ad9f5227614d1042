"""The order of nodes in a file: engines that follow it free tensors early, so it decides how many are alive at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import onnx_ir as ir

from ttac.passes.graph.shapes import sample_size
from ttac.passes.plan.plan import downstream_of_gradient

Rank = tuple[int, int]


def save_early(graph: ir.Graph, room: str = "autodiff") -> None:
    """Move what `room` added to a forward graph (masks, saves) right behind the last value it reads, in place."""
    ordered = early_order(graph, room)
    graph.remove(ordered)
    graph.extend(ordered)


def early_order(nodes: Iterable[ir.Node], room: str = "autodiff") -> list[ir.Node]:
    """`nodes` of a forward, with what `room` added right behind the last value it reads."""
    rank: dict[ir.Node, Rank] = {}
    for index, node in enumerate(nodes):
        made = [rank[p] for v in node.inputs if v is not None and (p := v.producer()) in rank and p is not None]
        added = node.metadata_props.get("ttac.room") == room
        rank[node] = (max(made, default=(0, 0))[0], index) if added else (index, index)
    return sorted(rank, key=lambda node: rank[node])


def recompute_late(graph: ir.Graph, room: str = "autodiff") -> None:
    """Move what a backward graph computes again right before its first reader, in place.

    The gradient itself, what depends on it, keeps its order; but of the gradients of a kernel and of its input, both
    made from the same one, each waits if it is better to hold that.
    """
    nodes = list(graph)
    late = downstream_of_gradient(nodes)
    rank: dict[ir.Node, Rank] = {}
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        readers = [rank[use.node][0] for value in node.outputs for use in value.uses()]
        if node.op_type == "ConvWeightGrad":
            wanted = [max(_restored_for(node, late, rank), default=index), *readers]
        else:
            wanted = readers if node not in late or _grows(node) else [index]
        rank[node] = (min(wanted, default=index), index)
    _sort(graph, rank)


def _grows(node: ir.Node) -> bool:
    """Whether it is better to hold what the node reads than what it writes, until that is wanted.

    The gradient of a strided shortcut is larger than the one it is made from, and waits for all of the other branch.
    """
    if node.op_type != "ConvInputGrad" or len(node.outputs[0].uses()) != 1:
        return False
    dy = node.inputs[0]
    assert dy is not None and dy.shape is not None and node.outputs[0].shape is not None
    return sample_size(node.outputs[0].shape) > sample_size(dy.shape)


def _restored_for(node: ir.Node, late: Set[ir.Node], rank: Mapping[ir.Node, Rank]) -> list[int]:
    """Where later gradients of kernels go that read the same input, if that is restored for them and the larger one.

    A block's input is read by its shortcut and by its first layer: restored once, it would be held for all between.
    """
    x, dy = node.inputs
    assert x is not None and dy is not None and x.shape is not None and dy.shape is not None
    if x.producer() is None or x.producer() in late or sample_size(dy.shape) > sample_size(x.shape):
        return []
    return [rank[use.node][0] for use in x.uses() if use.node.op_type == "ConvWeightGrad" and use.node in rank]


def _sort(graph: ir.Graph, rank: dict[ir.Node, Rank]) -> None:
    ordered = sorted(graph, key=lambda node: rank[node])
    graph.remove(ordered)
    graph.extend(ordered)
