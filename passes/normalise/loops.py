"""Unroll Loop and Scan where shapes and constants bound the number of turns, so shapes, batches and gradients pass.

Keras and scripted PyTorch models write recurrent layers and fixed repetitions as loops.  A loop without such a bound is
refused: every step of a bundle ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.keys import LAYER
from ttac.passes.normalise.batch_walk import Walk, rewrites
from ttac.passes.normalise.branches import control_flow, is_of_whole_batch, replace_outputs, spliced

LARGEST = 20_000
"""Largest number of nodes that one loop becomes."""


@rewrites("Loop")
def _loop(walk: Walk, node: ir.Node) -> None:
    """Unroll a Loop of a bounded number of turns; where the data end it earlier, later turns change nothing.

    Raises UnsupportedError for a Loop that nothing bounds, or that all samples of a batch end together.
    """
    body, stated = node.attributes["body"].as_graph(), node.inputs[0] is not None
    count = walk.fixed_data(node, 0) if stated else np.array(LARGEST)
    endless = _goes_on(body)
    if count is None or (endless and not stated):
        raise control_flow([node])
    states = [value for value in node.inputs[2:] if value is not None]
    turns = _bounded(node, body, int(count) if endless else min(int(count), LARGEST // max(1, len(body))))
    true, go = walk.op.constant(np.array(True)), _first_condition(walk, node, turns == int(count))
    rows: list[list[ir.Value]] = []
    for turn in range(turns):
        values = [walk.op.constant(np.array(turn, np.int64)), go or true, *states]
        again, *results = _turn(walk, node, body, values, turn)
        after, scanned = results[: len(states)], results[len(states) :]
        states = after if go is None else [_moved(walk, node, go, *pair) for pair in zip(after, states, strict=True)]
        rows.append(scanned)
        decided = True if endless else _decided(walk, again)
        if decided is None:
            go = _condition(walk, node, go, again, turns == int(count))
        if decided is False:
            break
    else:
        if not endless and turns < int(count):  # more turns than one loop may become
            raise control_flow([node])
    if go is not None and any(value.uses() or value.is_graph_output() for value in node.outputs[len(states) :]):
        raise control_flow([node])  # the data decide how many rows there are
    joined = [_stacked(walk, node, column, 0, len(states) + i) for i, column in enumerate(zip(*rows, strict=True))]
    replace_outputs(walk, node, [*states, *joined])


def _first_condition(walk: Walk, node: ir.Node, bounded: bool) -> ir.Value | None:
    """The condition of the first turn that the data decide; None if it is true."""
    go = node.inputs[1] if len(node.inputs) > 1 else None
    decided = True if go is None else _decided(walk, go)
    if decided is False:
        raise control_flow([node])
    return None if go is None or decided else _condition(walk, node, None, go, bounded)


def _decided(walk: Walk, condition: ir.Value) -> bool | None:
    """Whether a condition is true; None where the data decide."""
    contents = walk.contents(condition)
    if contents is None or contents[0].all() != contents[1].all():
        return None
    return bool(contents[0].all())


def _condition(walk: Walk, node: ir.Node, before: ir.Value | None, again: ir.Value, bounded: bool) -> ir.Value:
    """Whether the next turn counts: all conditions so far hold.

    Raises UnsupportedError for a loop without a bound, or if a whole batch decides together.
    """
    if not bounded or is_of_whole_batch(walk, again):
        raise control_flow([node])
    with walk.op.at(node.metadata_props.get(LAYER, ""), before=node):
        single = walk.op.Reshape(again, np.array([], np.int64))
        walk.visit_producer(single)
        whole = single if before is None else walk.op.And(before, single)
    if whole is not single:
        walk.visit_producer(whole)
    return whole


def _moved(walk: Walk, node: ir.Node, go: ir.Value, after: ir.Value, before: ir.Value) -> ir.Value:
    """The state behind a turn if the turn counts, else the state before; raises UnsupportedError for other shapes."""
    if walk.of(after).shapes is None or walk.of(after).shapes != walk.of(before).shapes:
        raise control_flow([node])
    with walk.op.at(node.metadata_props.get(LAYER, ""), before=node):
        state = walk.op.Where(go, after, before)
    walk.visit_producer(state)
    return state


@rewrites("Scan")
def _scan(walk: Walk, node: ir.Node) -> None:
    """Unroll a Scan over an axis whose size is the same for every batch; raises UnsupportedError for other axes."""
    body, count = node.attributes["body"].as_graph(), node.attributes.get_int("num_scan_inputs", 0)
    given = [value for value in node.inputs if value is not None]
    states, scans = given[: len(given) - count], given[len(given) - count :]
    axes = node.attributes.get_ints("scan_input_axes", [0] * count)
    backward = node.attributes.get_ints("scan_input_directions", [0] * count)
    sizes = {size for value, axis in zip(scans, axes, strict=True) for size in _sizes(walk, node, value, axis)}
    if len(sizes) != 1:
        raise control_flow([node])
    turns = _bounded(node, body, sizes.pop())
    rows: list[list[ir.Value]] = []
    for turn in range(turns):
        places = [turns - 1 - turn if reverse else turn for reverse in backward]
        parts = [_part(walk, node, *each, turn) for each in zip(scans, places, axes, strict=True)]
        results = _turn(walk, node, body, [*states, *parts], turn)
        states, scanned = results[: len(states)], results[len(states) :]
        rows.append(scanned)
    outputs = len(body.outputs) - len(states)
    ends = node.attributes.get_ints("scan_output_axes", [0] * outputs)
    reverse = node.attributes.get_ints("scan_output_directions", [0] * outputs)
    joined = []
    for i, column in enumerate(zip(*rows, strict=True)):
        ordered = column[::-1] if reverse[i] else column
        joined.append(_stacked(walk, node, ordered, ends[i], len(states) + i))
    replace_outputs(walk, node, [*states, *joined])


def _goes_on(body: ir.Graph) -> bool:
    """Whether the condition that the body of a Loop gives is that which it gets, or a constant that is true."""
    value = body.outputs[0]
    while (maker := value.producer()) is not None and maker.op_type in ("Identity", "Cast"):
        assert maker.inputs[0] is not None
        value = maker.inputs[0]
    if maker is not None and maker.op_type == "Constant":
        return bool(maker.attributes["value"].as_tensor().numpy().all()) if "value" in maker.attributes else False
    return value is body.inputs[1] or (value.const_value is not None and bool(value.const_value.numpy().all()))


def _bounded(node: ir.Node, body: ir.Graph, turns: int) -> int:
    """The number of turns; raises UnsupportedError for none, and for more nodes than `LARGEST`."""
    if not 0 < turns * max(1, len(body)) <= LARGEST:
        raise control_flow([node])
    return turns


def _sizes(walk: Walk, node: ir.Node, value: ir.Value, axis: int) -> list[int]:
    shapes = walk.of(value).shapes
    if shapes is None:
        raise control_flow([node])
    return [shape[axis] for shape in shapes]


def _part(walk: Walk, node: ir.Node, value: ir.Value, place: int, axis: int, turn: int) -> ir.Value:
    """The row `place` of a scanned value, without its axis."""
    with walk.op.at(node.metadata_props.get(LAYER, ""), before=node):
        part = walk.op.Gather(value, np.array(place), axis=axis, name=f"{node.name}.{turn}.{value.name}")
    walk.visit_producer(part)
    return part


def _turn(walk: Walk, node: ir.Node, body: ir.Graph, values: Sequence[ir.Value], turn: int) -> list[ir.Value]:
    """Put one turn of the body in front of `node`; return the values of its outputs."""
    for name, value in list(body.initializers.items()):  # shared by all turns
        del body.initializers[name]
        value.name = f"{node.name}.{name}"
        walk.graph.register_initializer(value)
    copy = body.clone(allow_outer_scope_values=True)
    for value in [value for inner in copy for value in inner.outputs]:
        value.name = f"{node.name}.{turn}.{value.name}"
    for inner, given in zip(list(copy.inputs), values, strict=True):
        ir.convenience.replace_all_uses_with(inner, given, replace_graph_outputs=True)
    return spliced(walk, node, copy)


def _stacked(walk: Walk, node: ir.Node, parts: Sequence[ir.Value], axis: int, place: int) -> ir.Value:
    """The parts, one for each turn, along a new axis."""
    with walk.op.at(node.metadata_props.get(LAYER, ""), before=node):
        name, rank = f"{node.name}.{place}", len((walk.of(parts[0]).shapes or ((),))[0])
        wide = [walk.op.Unsqueeze(part, np.array([axis % (rank + 1)])) for part in parts]
        whole = walk.op.Concat(*wide, axis=axis % (rank + 1), name=name)
    for value in [*wide, whole]:
        walk.visit_producer(value)
    return whole
