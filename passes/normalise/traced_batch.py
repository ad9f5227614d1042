"""Free the batch of a file that was traced with a fixed one: remove the number from the nodes that contain it.

A Reshape contains it in its target shape, a Concat in the rows of a class token, a Resize in its sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.places import node_place, value_place
from ttac.passes.graph.rewire import nodes_before, replace
from ttac.passes.normalise.batch_walk import IMAGINED, Walk, integer, rewrites

BROADCASTS = frozenset(
    "Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual MatMul Max Mean Min Mod "
    "Mul Or PRelu Pow Sub Sum Where Xor".split()
)
"""Operators that broadcast their operands."""


def free_batch(
    model: ir.Model,
    traced: int | None,
    axes: Mapping[str, int | None] | None = None,
    *,
    open_sizes: bool = False,
) -> list[str]:
    """Type every value of `model` in place, with a symbolic batch; return the names of the rewritten nodes.

    Args:
        model: with inputs whose shapes but the batch are bound.
        traced: the batch that the file was traced with; None where the file declares the batch free.
        axes: the axis of each input with the samples; without it, the axis of size N.
        open_sizes: leave tables that follow from the size of the input to be computed.

    Raises UnsupportedError at the node that fixes the batch, or with the names of values of unknown shape.
    """
    walk = Walk(model, traced, axes=axes, open_sizes=open_sizes)
    for node in list(model.graph):
        walk.visit(node)
    _refuse_unknown(model, walk.unknown)
    _state_targets(walk)
    _drop_no_ops(walk)
    return walk.rewritten


def _refuse_unknown(model: ir.Model, unknown: Sequence[ir.Node]) -> None:
    """Raise UnsupportedError if the first output depends on one of the nodes, whose output has no known shape.

    Another output may: its declared rank stays, with `?` for its open sizes.
    """
    bare = [value for value in model.graph.outputs if value.shape is None]
    needed = {node for value in (model.graph.outputs[0], *bare) for node in nodes_before(value)}
    reached = [node for node in dict.fromkeys(unknown) if node in needed]
    if reached:
        raise UnsupportedError(
            f"the shapes of the outputs of {len(reached)} nodes cannot be inferred",
            where="\n     ".join(node_place(node) for node in reached[:8]),
            hint="an operator whose output size depends on the data (NonZero, NonMaxSuppression) cannot be compiled",
        )


@rewrites("Reshape")
def _reshape(walk: Walk, node: ir.Node) -> int | None:
    """Find the dimension of the target that contains the batch, by the order of elements in memory, and free it.

    Returns the number of times that the batch repeats inside this dimension.
    """
    x, target = walk.batched(node), walk.fixed_data(node, 1)
    if x is None or x.axis is None or target is None or walk.traced is None:
        return None
    shape, batch = x.at(walk.traced), walk.traced
    size = int(np.prod(shape, dtype=np.int64))
    if not integer(node, "allowzero"):
        target = np.array([shape[i] if d == 0 else d for i, d in enumerate(target)], np.int64)
    rest = int(np.prod(target[target >= 0], dtype=np.int64))
    target = np.where(target < 0, size // max(rest, 1), target)
    inner = int(np.prod(shape[x.axis :], dtype=np.int64)) // (batch * x.outer)
    outer = int(np.prod(shape[: x.axis], dtype=np.int64)) * x.outer
    places = [place for axis in range(len(target)) if (place := _place(target, axis, outer, inner, batch))]
    if not places:
        return None
    repeats, axis = min(places)[-2:]
    freed = np.array([-1 if i == axis else d for i, d in enumerate(target)], np.int64)
    node.attributes.pop("allowzero", None)
    if not np.array_equal(freed, walk.fixed_data(node, 1)):  # type: ignore[arg-type]
        walk.constant(node, 1, freed)
    return repeats


def _place(target: np.ndarray, axis: int, outer: int, inner: int, batch: int) -> tuple[bool, bool, int, int] | None:
    """Rank `target[axis]` as the place of the batch, smaller is better; None if it cannot contain the batch.

    The rank ends in repeats and axis. A separate dimension ranks best. Next comes any dimension but the last, which
    contains features. Last comes the batch as the slower part of a dimension (batch times heads). With a traced batch
    of 1, several places are possible.
    """
    before, after = int(np.prod(target[:axis], dtype=np.int64)), int(np.prod(target[axis + 1 :], dtype=np.int64))
    if not before or not after or outer % before or inner % after:
        return None
    repeats, each = outer // before, inner // after
    if repeats * batch * each != target[axis]:
        return None
    return repeats * each > 1, axis == len(target) - 1, repeats, axis


@rewrites("Expand")
def _expand(walk: Walk, node: ir.Node) -> None:
    """Let an Expand keep the batch of its input: its target becomes 1 there. Of traced rows, keep one."""
    x, target = walk.batched(node), walk.fixed_data(node, 1)
    if walk.traced is None:
        return
    if x is not None and x.axis is not None and x.shapes is not None and target is not None:
        axis = len(target) - len(x.shapes[0]) + x.axis
        if axis >= 0 and target[axis] != 1:
            walk.constant(node, 1, np.array([1 if i == axis else d for i, d in enumerate(target)], np.int64))
    row, grown = walk.of(node.inputs[0]), walk.contents(node.inputs[1])  # type: ignore[arg-type]
    if x is None and row.shapes is not None and grown is not None and walk.traced > 1:
        for from_end in range(-len(row.shapes[0]), 0):
            if -from_end <= len(grown[0]) and grown[0][from_end] != grown[1][from_end] and row.shapes[0][from_end] > 1:
                _shrink(walk, node, 0, len(row.shapes[0]) + from_end)


@rewrites("Gather")
def _gather(walk: Walk, node: ir.Node) -> None:
    """Turn a Gather of all elements of a flattened tensor in order (torch's `as_strided`) into a Reshape."""
    x, places = walk.batched(node), walk.fixed_data(node, 1)
    if walk.traced is None or x is None or places is None or len(x.at(1)) != 1:
        return
    if x.at(walk.traced) != (places.size,) or not np.array_equal(places.ravel(), np.arange(places.size)):
        return
    with walk.op.at(node.metadata_props.get(LAYER, ""), before=node):
        reshaped = walk.op.Reshape(node.inputs[0], list(places.shape), name=f"{node.outputs[0].name}.reshape")
    walk.note(node)
    walk.visit_producer(reshaped)
    replace(walk.graph, node, reshaped)


@rewrites(*BROADCASTS)
def _broadcast(walk: Walk, node: ir.Node) -> None:
    """Shrink an operand with one row per traced sample to one row, if the rows are equal."""
    operands = [(i, walk.of(v)) for i, v in enumerate(node.inputs) if v is not None]
    ranks = [len(known.shapes[0]) for _, known in operands if known.shapes is not None]
    grown = {known.axis - len(known.shapes[0]) for _, known in operands if known.shapes and known.axis is not None}
    if len(ranks) != len(operands) or len(grown) != 1 or walk.traced in (1, None):
        return
    from_end = grown.pop()
    if node.op_type == "MatMul" and from_end >= -2:
        return
    for position, known in operands:
        assert known.shapes is not None
        axis = len(known.shapes[0]) + from_end
        if known.axis is None and axis >= 0 and known.shapes[0][axis] == walk.traced:
            _shrink(walk, node, position, axis)


def _shrink(walk: Walk, node: ir.Node, position: int, axis: int) -> None:
    """Let `node` read one row of its operand; raises UnsupportedError if the rows differ."""
    value, array = node.inputs[position], walk.fixed_data(node, position)
    if array is None or not np.array_equal(array, np.repeat(array.take([0], axis), array.shape[axis], axis)):
        raise walk.refusal(node, f"its operand {value_place(value)} has a different row for each sample")
    walk.constant(node, position, array.take([0], axis))


@rewrites("Concat")
def _concat(walk: Walk, node: ir.Node) -> None:
    """Repeat operands without the batch (a class token) for every sample."""
    first = next((i for i in range(len(node.inputs)) if walk.batched(node, i)), None)
    if first is None:
        return
    like, known = node.inputs[first], walk.batched(node, first)
    assert like is not None and known is not None and known.shapes is not None and known.axis is not None
    joined = integer(node, "axis") or 0
    axis = known.axis
    if joined % len(known.shapes[0]) == axis or known.shapes[0][axis] != IMAGINED[0]:
        return
    for position, value in enumerate(node.inputs):
        if value is None or walk.of(value).axis is not None or walk.of(value).shapes is None:
            continue
        if walk.of(value).at(1)[axis] != 1:
            _shrink(walk, node, position, axis)
        _repeat(walk, node, position, like, axis)


def _repeat(walk: Walk, node: ir.Node, position: int, like: ir.Value, axis: int) -> None:
    row, op = node.inputs[position], walk.op
    assert row is not None
    shape = walk.of(row).at(1)
    with op.at(node.metadata_props.get(LAYER, ""), before=node):
        count = op.Shape(like, start=axis, end=axis + 1, name=f"{row.name}.count")
        parts = [
            part for part in (list(shape[:axis]), count, list(shape[axis + 1 :])) if not isinstance(part, list) or part
        ]
        target = op.Concat(*parts, axis=0, name=f"{row.name}.shape")
        repeated = op.Expand(row, target, name=f"{row.name}.repeated")
    for value in (count, target, repeated):
        walk.visit_producer(value)
    node.replace_input_with(position, repeated)
    walk.note(node)


@rewrites("Resize")
def _resize(walk: Walk, node: ir.Node) -> None:
    """Turn sizes for all axes into sizes for all axes but the batch."""
    x, sizes = walk.batched(node), walk.fixed_data(node, 3)
    if x is None or x.axis is None or x.shapes is None or sizes is None or "axes" in node.attributes:
        return
    axes = [axis for axis in range(len(sizes)) if axis != x.axis]
    node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    walk.constant(node, 3, sizes[axes])


@rewrites("LSTM", "GRU", "RNN")
def _recurrent(walk: Walk, node: ir.Node) -> None:
    """Remove initial states of zeros, one per traced sample: the operator starts with zeros by default."""
    for position in (5, 6):
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is not None and value.const_value is not None and not value.const_value.numpy().any():
            node.replace_input_with(position, None)
            walk.note(node)


@rewrites("SplitToSequence")
def _split_sequence(walk: Walk, node: ir.Node) -> None:
    """Turn a sequence that nodes only index (torch's `chunk`) into a Split."""
    x, axis = walk.of(node.inputs[0]), integer(node, "axis") or 0  # type: ignore[arg-type]
    readers = [use.node for use in node.outputs[0].uses()]
    if x.shapes is None or x.axis == axis % len(x.shapes[0]) or not readers:
        return
    if any(reader.op_type != "SequenceAt" or walk.fixed_data(reader, 1) is None for reader in readers):
        return
    size, each = x.shapes[0][axis], walk.fixed_data(node, 1) if len(node.inputs) > 1 else np.array(1)
    if each is None or (len(node.inputs) == 1 and not integer(node, "keepdims")):
        return
    sizes = each.tolist() if each.ndim else [min(int(each), size - start) for start in range(0, size, int(each))]
    with walk.op.at(node.metadata_props.get(LAYER, ""), before=node):
        parts: Any = walk.op.Split(
            node.inputs[0], sizes, axis=axis, outputs=len(sizes), name=f"{node.outputs[0].name}.part"
        )
    parts = parts if isinstance(parts, tuple) else (parts,)
    for reader in readers:
        position = walk.fixed_data(reader, 1)
        replace(walk.graph, reader, parts[0 if position is None else int(position)])
    walk.graph.remove(node, safe=True)
    walk.visit_producer(parts[0])  # last: it replaces parts of a constant by initializers


def _state_targets(walk: Walk) -> None:
    """Write the target of each Reshape or Resize with a known result as a constant that leaves out the batch."""
    for node in walk.graph:
        if node.op_type == "Resize":
            _state_sizes(walk, node)
        if node.op_type != "Reshape" or walk.of(node.outputs[0]).shapes is None:
            continue
        shape = walk.of(node.outputs[0]).at(-1)
        if sum(size < 0 for size in shape) <= 1 and 0 not in shape:
            target = np.array([-1 if size < 0 else size for size in shape], np.int64)
            node.attributes.pop("allowzero", None)
            node.replace_input_with(1, walk.op.constant(target))


ALIKE = BROADCASTS - {"MatMul", "Max", "Mean", "Min", "Sum", "PRelu"}
"""Operators that expand one of two operands to the shape of the other."""


def _drop_no_ops(walk: Walk) -> None:
    """Remove a node whose output equals its input: the same shape, in the same order of elements.

    Also remove an Expand (torch's `expand_as`) to the shape of its readers' other operand: the readers broadcast
    anyway.
    """
    for node in list(walk.graph):
        if node.op_type == "Expand" and _spells_out(walk, node):
            replace(walk.graph, node, node.inputs[0])
            continue
        x = node.inputs[0] if node.inputs else None
        if x is None or node.op_type not in ("Cast", "Expand", "Reshape", "Slice"):
            continue
        before, after = walk.of(x), walk.of(node.outputs[0])
        steps = walk.fixed_data(node, 4) if node.op_type == "Slice" else None
        if before.shapes is None or (before.shapes, before.dtype) != (after.shapes, after.dtype):
            continue
        if steps is None or (steps == 1).all():
            replace(walk.graph, node, x)


def _spells_out(walk: Walk, node: ir.Node) -> bool:
    """Return whether all readers of an Expand would broadcast its input to the same shape."""
    x, y = node.inputs[0], node.outputs[0]
    shapes = walk.of(y).shapes
    if x is None or shapes is None or y.is_graph_output() or len((walk.of(x).shapes or ((),))[0]) != len(shapes[0]):
        return False
    for use in y.uses():
        others = [value for value in use.node.inputs if value is not y]
        if use.node.op_type not in ALIKE or len(others) != 1 or others[0] is None:
            return False
        if walk.of(others[0]).shapes != shapes:
            return False
    return True


def _state_sizes(walk: Walk, node: ir.Node) -> None:
    """Write the sizes of a Resize as constants for all axes but the batch."""
    x, y = walk.batched(node), walk.of(node.outputs[0])
    if x is None or y.shapes is None or len(node.inputs) < 4 or node.inputs[3] is None or "axes" in node.attributes:
        return
    axes = [axis for axis in range(len(y.shapes[0])) if axis != x.axis]
    node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    node.replace_input_with(3, walk.op.constant(np.array(y.at(1), np.int64)[axes]))


def loses_batch(model: ir.Model) -> ir.Node | None:
    """Return the last node before the output that reads a value with a batch and produces none."""
    last, pending, seen = None, [model.graph.outputs[0].producer()], set()
    order = {id(node): position for position, node in enumerate(model.graph)}
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        grows = [any(not isinstance(d, int) for d in v.shape or ()) for v in node.inputs if v is not None]
        if any(grows) and node.op_type != "Shape" and (last is None or order[id(node)] > order[id(last)]):
            if not any(not isinstance(d, int) for v in node.outputs for d in v.shape or ()):
                last = node
        pending += [value.producer() for value in node.inputs if value is not None]
    return last
