"""The last operators of a model: a Softmax or Sigmoid, and operators behind it that only move values."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ttac.passes.differentiate.followed_axes import MOVES
from ttac.passes.graph.shapes import dims


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The last operators of a model.

    Attributes:
        kind: "Softmax", "LogSoftmax", "Sigmoid", or "" for none of them.
        axis: the axis of a Softmax, in the axes of `scores`.
        scores: the input of the Softmax or Sigmoid.
        moves: the nodes of `MOVES` between `last` and the output, in order.
        last: the last node that is not in `MOVES`; None if only such nodes follow the model's input.
    """

    kind: str = ""
    axis: int | None = None
    scores: ir.Value | None = None
    moves: tuple[ir.Node, ...] = ()
    last: ir.Node | None = None


def ending_of(output: ir.Value) -> Ending:
    """Return the last operators before `output`."""
    moves: list[ir.Node] = []
    node = output.producer()
    while node is not None and node.op_type in MOVES and node.inputs[0] is not None:
        moves.insert(0, node)
        node = node.inputs[0].producer()
    if node is None:
        return Ending(moves=tuple(moves))
    if node.op_type in ("Softmax", "LogSoftmax"):
        x = node.inputs[0]
        axis = node.attributes.get_int("axis", -1) % len(dims(x))
        return Ending(kind=node.op_type, axis=axis, scores=x, moves=tuple(moves), last=node)
    if node.op_type == "Sigmoid":
        return Ending(kind="Sigmoid", scores=node.inputs[0], moves=tuple(moves), last=node)
    if (spelled := _spelled_softmax(node)) is not None:
        scores, axis = spelled
        return Ending(kind="Softmax", axis=axis, scores=scores, moves=tuple(moves), last=node)
    return Ending(moves=tuple(moves), last=node)


def _spelled_softmax(node: ir.Node) -> tuple[ir.Value, int] | None:
    """Scores and axis of e^x / sum e^x, the Softmax of older Keras on maps."""
    if node.op_type != "Div" or node.inputs[0] is None or node.inputs[1] is None:
        return None
    powers, total = node.inputs[0].producer(), node.inputs[1].producer()
    if powers is None or total is None or (powers.op_type, total.op_type) != ("Exp", "ReduceSum"):
        return None
    axes = total.inputs[1].const_value if len(total.inputs) > 1 and total.inputs[1] is not None else None
    if total.inputs[0] is not powers.outputs[0] or axes is None or axes.size != 1 or powers.inputs[0] is None:
        return None
    if not total.attributes.get_int("keepdims", 1):
        return None
    return powers.inputs[0], int(axes.numpy().item()) % len(dims(powers.inputs[0]))
