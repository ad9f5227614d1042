"""Put a longer value in the place of a value, and let the shapes of all nodes behind it follow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import accumulate, product
from operator import mul

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph import composites
from ttac.passes.graph.builder import Builder, infer
from ttac.passes.graph.match import array_of
from ttac.passes.graph.places import node_place
from ttac.passes.graph.rewire import nodes_before
from ttac.passes.graph.shapes import BATCH, dims, is_batch

SAMPLES = 1_000_003
"""A prime number in the place of the batch, whose size the run decides; no product of other sizes has this factor."""
FAR = 1 << 31
"""End of a slice from which on it reaches the last element of every axis."""

Sizes = list[int]


def lengthen(op: Builder, value: ir.Value, longer: ir.Value, axis: int) -> None:
    """Let all readers of `value` but the makers of `longer` read `longer`, which has more elements along `axis`.

    The shapes of all nodes behind it follow, in place: a constant shape of a Reshape gets the new length.  The graph
    must be able to take the length: a node with a constant of the old length cannot.

    Raises UnsupportedError with the first node that cannot follow.
    """
    lengths = int(dims(value)[axis]), int(dims(longer)[axis])
    makers = set(nodes_before(longer))
    for use in list(value.uses()):
        if use.node not in makers:
            use.node.replace_input_with(use.idx, longer)
    before: dict[ir.Value, Sizes] = {longer: _numbers(value)}
    for node in op.graph:
        if any(each in before for each in node.inputs if each is not None):
            before |= _followed(op, node, before, lengths)


def _followed(
    op: Builder, node: ir.Node, before: Mapping[ir.Value, Sizes], lengths: tuple[int, int]
) -> dict[ir.Value, Sizes]:
    """The outputs of the node whose shapes change, with their old sizes; the node is changed in place."""
    old = [_numbers(each) for each in node.outputs]
    if node.op_type == "Reshape":
        new = [_reshaped(op, node, before, lengths)]
    else:
        _refuse_parts(node, before)
        new = [_merged(shape, sizes) for shape, sizes in zip(_inferred(op, node), old, strict=True)]
    changed = {}
    for each, sizes, was in zip(node.outputs, new, old, strict=True):
        if sizes != was:
            each.shape = ir.Shape([_symbol(size) for size in sizes])
            changed[each] = was
    return changed


def _inferred(op: Builder, node: ir.Node) -> list[ir.Shape | None]:
    composite = composites.COMPOSITES.get(node.op_type)
    try:
        return [shape for _, shape in (composite.types(node) if composite else infer(node, op.opset))]
    except UnsupportedError as error:
        raise _stuck(node) from error


def _reshaped(op: Builder, node: ir.Node, before: Mapping[ir.Value, Sizes], lengths: tuple[int, int]) -> Sizes:
    """The new sizes of a Reshape, whose constant target is replaced."""
    x, target = node.inputs[0], array_of(node.inputs[1])
    if x is None or x not in before or target is None:
        raise _stuck(node)
    old, sizes = _numbers(node.outputs[0]), []
    for part, longer, others in _groups(before[x], _numbers(x), old):
        sizes += _stretched(part, longer, others, lengths, node)
    kept = [given if given in (-1, 0) else size for given, size in zip(target.tolist(), sizes, strict=True)]
    node.replace_input_with(1, op.constant(np.array(kept, np.int64)))
    return sizes


def _groups(old: Sizes, new: Sizes, after: Sizes) -> Iterator[tuple[int, int, Sizes]]:
    """The smallest runs of axes before and after a Reshape with equal products: old product, new product, sizes after.

    A size of 1 belongs to the run on its left.
    """
    inner, outer = list(accumulate(old, mul)), list(accumulate(after, mul))
    begin = 0
    for end in sorted({*inner} & {*outer}):
        mine = [axis for axis, total in enumerate(inner) if begin < total <= end]
        yield (
            math.prod(old[axis] for axis in mine),
            math.prod(new[axis] for axis in mine),
            [size for size, total in zip(after, outer, strict=True) if begin < total <= end],
        )
        begin = end


def _stretched(old: int, new: int, sizes: Sizes, lengths: tuple[int, int], node: ir.Node) -> Sizes:
    """The sizes, of which multiples of the old length become multiples of the new, so that the product is `new`."""
    if old == new:
        return sizes
    short, long = lengths
    grown = [{size, size // short * long} if size % short == 0 else {size} for size in sizes]
    fitting = [list(choice) for choice in product(*grown) if math.prod(choice) == new]
    if len(fitting) != 1:
        raise _stuck(node)
    return fitting[0]


def _refuse_parts(node: ir.Node, before: Mapping[ir.Value, Sizes]) -> None:
    """Raise UnsupportedError for a node that takes a part of a longer axis, but for the head or all of the rest."""
    x = node.inputs[0] if node.inputs else None
    if x is None or x not in before:
        return
    longer = {axis for axis, (a, b) in enumerate(zip(before[x], _numbers(x), strict=True)) if a != b}
    if node.op_type == "Gather":
        taken = array_of(node.inputs[1])
        if node.attributes.get_int("axis", 0) % len(before[x]) in longer and (taken is None or np.any(taken != 0)):
            raise _stuck(node)
    elif node.op_type == "Slice":
        starts, ends, axes = (array_of(value) for value in node.inputs[1:4])
        if starts is None or ends is None or axes is None:
            raise _stuck(node)
        for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist(), strict=True):
            if axis % len(before[x]) in longer and (start, end) != (0, 1) and end < FAR:
                raise _stuck(node)
    elif node.op_type in ("Pad", "Resize") or (
        node.op_type == "Split" and node.attributes.get_int("axis", 0) % len(before[x]) in longer
    ):
        raise _stuck(node)


def _merged(shape: ir.Shape | None, old: Sizes) -> Sizes:
    """The inferred sizes; the old size where inference knows none."""
    if shape is None or len(shape) != len(old):
        return old
    known = [size if isinstance(size, int) else size.value for size in shape]
    return [was if size is None else _number(size) for size, was in zip(known, old, strict=True)]


def _numbers(value: ir.Value) -> Sizes:
    return [_number(size) for size in dims(value)]


def _number(size: int | str) -> int:
    """The size as a number, with `SAMPLES` for the batch; raises UnsupportedError for another open size."""
    if isinstance(size, int):
        return size
    times, _, _ = size.rpartition("*")
    if not is_batch(size) or (times and not times.isdigit()):
        raise UnsupportedError(
            f"the size `{size}` stays open, and prompts lengthen an axis of a fixed length",
            where="`--max-shape`",
            hint="compile for one size, `--shape`",
        )
    return SAMPLES * int(times or 1)


def _symbol(size: int) -> int | str:
    times, rest = divmod(size, SAMPLES)
    if rest or not times:
        return size
    return BATCH if times == 1 else f"{times}*{BATCH}"


def _stuck(node: ir.Node) -> UnsupportedError:
    return UnsupportedError(
        "the graph is fixed to the number of tokens, so no prompt tokens can be added",
        where=node_place(node),
        hint="`ttac inspect` lists the methods that fit",
    )
