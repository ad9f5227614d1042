"""Refusals of outputs that hold no predictions, and of readings that no output of this form has."""

from __future__ import annotations

import onnx_ir as ir

from ttac.errors import UnsupportedError, UsageError
from ttac.passes.differentiate.endings import Ending
from ttac.passes.differentiate.followed_axes import MOVES
from ttac.passes.differentiate.score_parts import ScoreParts
from ttac.passes.graph.places import node_place
from ttac.passes.graph.shapes import dims

# Operators that pick, mix or round predictions: their outputs are no longer those of a Softmax or Sigmoid.
MIXES = frozenset("Cast Clip Concat DepthToSpace Gather GatherND Pad Resize Slice Split".split())
# Operators that output the numbers of classes.
CHOICES = frozenset("ArgMax ArgMin Hardmax NonMaxSuppression TopK".split())


def refuse_whole_numbers(output: ir.Value) -> None:
    """Raise UnsupportedError for an output that holds no floats, such as labels."""
    if output.dtype in (None, ir.DataType.FLOAT):
        return
    maker, kind = output.producer(), output.dtype.name.lower()
    hint = "choose an output of floats with `--logits NAME`, or export the logits; or use a method without a loss"
    if maker is not None and maker.op_type == "ArgMax":
        hint = "`ArgMax` gives the class only; export the scores, its input; or use a method without a loss"
    raise UnsupportedError(f"the output `{output.name}` is {kind}, not float32", where=named(output), hint=hint)


def refuse_choices(output: ir.Value, ending: Ending) -> None:
    """Raise UnsupportedError if operators change the predictions before the output."""
    node, mixed = ending.last, []
    while node is not None and node.op_type in MIXES | MOVES and not ending.kind:
        mixed += [node] if node.op_type in MIXES else []
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None:
        return
    if node.op_type in CHOICES:
        raise UnsupportedError(
            f"the output holds the choice of `{node.op_type}`, not scores: a choice has no gradient",
            where=f"{named(output)}, {node_place(node)}",
            hint=f"export the model without `{node.op_type}`, or choose an output with the scores: `--logits NAME`",
        )
    if mixed and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
        operators = ", ".join(f"`{other.op_type}`" for other in mixed)
        raise UnsupportedError(
            f"{operators} behind the last {node.op_type}: the outputs are no longer probabilities",
            where=f"{named(output)}, {node_place(node)}",
            hint=f"export the model without its last {node.op_type}, or choose another output: `--logits NAME`",
        )


def refuse_missing_axis(output: ir.Value, axis: int | None) -> None:
    """Raise UsageError for an axis that the output does not have, and for the axis of the batch."""
    rank = len(dims(output))
    if axis is not None and not 0 < axis < rank:
        raise UsageError(
            f"the output has no axis {axis} of classes",
            where=f"{named(output)}, `--axis {axis}`",
            hint=f"an axis from 1 to {rank - 1}" if rank > 1 else "leave the option out",
        )


def refuse_mixture(output: ir.Value, option: str, parts: ScoreParts | None) -> None:
    """Raise UnsupportedError for a reading that takes coordinates of boxes for scores."""
    if parts is not None:
        raise UnsupportedError(
            f"the output joins scores and other numbers, such as coordinates: a head `{option}` mixes them",
            where=f"{named(output)}, axis {parts.axis}",
            hint="`--head detection`, without `--axis`, learns from the scores alone; or use a method without a loss",
        )


def named(output: ir.Value) -> str:
    """Return the name and shape of an output for the place of a message."""
    return f"output `{output.name}` {output.shape}"
