"""Write the plan's codecs into both halves: save right behind what it reads, restore right before the first reader."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER, LIKELY_BYTES, ROOM_KEY, SAMPLE_BYTES
from ttac.passes.graph.shapes import dims, is_batch, sample_size
from ttac.passes.plan.blocks import Wanted
from ttac.passes.plan.codecs import CODECS, Codec
from ttac.passes.plan.plan import Kept, Plan

ROOM = "plan"
LIKELY = 1 / 3
"""Part of the share that its most important layer keeps which the layers of a net keep on the whole, as measured."""


def encode(forward: ir.Model, backward: ir.Model, plan: Plan) -> tuple[str, ...]:
    """Put the plan's codecs into both halves, in place; returns the names of what crosses then."""
    crossing: list[str] = []
    shares = _shares(forward, plan)
    for row in plan.kept:
        if row.how == "recompute":
            continue
        codec = CODECS[row.how]
        if codec.name == "dense":
            crossing.append(row.value)
            continue
        x = next(v for v in forward.graph.outputs if v.name == row.value)
        saved = _save(forward, x, row, codec, shares)
        _restore(backward, row, codec, saved)
        if codec.drops:
            assert x.shape is not None
            pieces = row.share * sample_size(x.shape) / math.prod(_known(saved[0]))
            _mark_pieces([*_added(forward.graph), *_added(backward.graph)], pieces)
        crossing += [str(value.name) for value in saved]
    for value in [*_added(forward.graph), *_added(backward.graph), *backward.graph.inputs]:
        if value.shape is not None:
            sizes = [f"{value.name}.size" if size is None else size for size in _sizes(value)]
            value.shape = ir.Shape(sizes)
    return tuple(crossing)


def _added(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph if node.metadata_props.get(ROOM_KEY) == ROOM for value in node.outputs]


def _sizes(value: ir.Value) -> list[int | str | None]:
    assert value.shape is not None
    return [size if isinstance(size, int) else size.value for size in value.shape]


def _known(value: ir.Value) -> list[int]:
    return [size for size in _sizes(value) if isinstance(size, int)]


def _mark_pieces(values: Sequence[ir.Value], pieces: float) -> None:
    """Note what the `values` whose size depends on the data take, where at most `pieces` of a sample are kept."""
    for value in values:
        if value.shape is None or value.dtype is None or SAMPLE_BYTES in value.meta:
            continue
        if any(size is None or (isinstance(size, str) and not is_batch(size)) for size in _sizes(value)):
            most = pieces * math.prod(_known(value)) * value.dtype.bitwidth / 8
            _mark_bytes([value], most, most * LIKELY)


def _shares(forward: ir.Model, plan: Plan) -> ir.Value | None:
    """The graph input, or the constant, with the share of its input that each layer keeps."""
    if plan.shares is None:
        return None
    graph = forward.graph
    if plan.shares.moves:
        value = ir.val(plan.shares.name, dtype=ir.DataType.FLOAT, shape=[len(plan.shares.initial)])
        graph.inputs.append(value)
        return value
    return Builder(graph, ROOM, forward.opset_imports[""]).constant(plan.shares.initial)


def _save(forward: ir.Model, x: ir.Value, row: Kept, codec: Codec, shares: ir.Value | None) -> list[ir.Value]:
    graph = forward.graph
    nodes = list(graph)
    maker = x.producer()
    assert maker is not None, "a residual is computed"
    op = Builder(graph, ROOM, forward.opset_imports[""])
    with op.at(row.value, before=(*nodes, None)[nodes.index(maker) + 1]):
        wanted = None
        if codec.drops:
            assert shares is not None
            wanted = Wanted(_largest(op, shares, row.layers), op.ReduceMin(shares, keepdims=0))
        saved = list(codec.save(op, x, wanted))
    _name(
        graph, saved, [".".join(word for word in (row.value, codec.name, part) if word) for part in ("", *codec.parts)]
    )
    _mark_bytes(saved, codec.bytes(x, row.share), codec.bytes(x, row.share * (LIKELY if codec.drops else 1.0)))
    position = list(graph.outputs).index(x)
    graph.outputs[position : position + 1] = saved
    return saved


def _name(graph: ir.Graph, saved: Sequence[ir.Value], names: Sequence[str]) -> None:
    """Name what crosses; an intermediate that has such a name already, as a TopK may, gets another."""
    for value in [v for node in graph for v in node.outputs if v.name in names]:
        value.name = f"{value.name}.all"
    for value, name in zip(saved, names, strict=True):
        value.name = name


def _largest(op: Builder, shares: ir.Value, layers: tuple[int, ...]) -> ir.Value:
    """The share that the most important of the layers asks for, a scalar."""
    picked = op.Gather(shares, list(layers), axis=0)
    return op.ReduceMax(picked, keepdims=0) if len(layers) > 1 else op.Squeeze(picked, [0])


def _mark_bytes(saved: Sequence[ir.Value], most: float, likely: float) -> None:
    """What all tensors of the codec take at most and as a rule, noted at the first: their shapes depend on the data."""
    for position, value in enumerate(saved):
        value.meta[SAMPLE_BYTES] = most if position == 0 else 0.0
        value.meta[LIKELY_BYTES] = likely if position == 0 else 0.0


def _restore(backward: ir.Model, row: Kept, codec: Codec, saved: list[ir.Value]) -> None:
    graph = backward.graph
    x = next(v for v in graph.inputs if v.name == row.value)
    given = []
    for value in saved:
        taken = ir.val(str(value.name), dtype=value.dtype, shape=value.shape)
        taken.meta.update(value.meta)
        given.append(taken)
    position = list(graph.inputs).index(x)
    graph.inputs[position : position + 1] = given
    op = Builder(graph, ROOM, backward.opset_imports[""])
    _read_as_saved(op, x, codec, given)
    readers = {use.node for use in x.uses()}
    if not readers:
        return
    with op.at(row.value, before=next(node for node in graph if node in readers)):
        restored = codec.restore(op, given, x)
    ir.convenience.replace_all_uses_with(x, restored)


def _read_as_saved(op: Builder, x: ir.Value, codec: Codec, saved: list[ir.Value]) -> None:
    """Replace what reads `x` and can be computed from the saved tensors, in place."""
    dots = [use.node for use in x.uses() if use.node.op_type == "ChannelDot" and use.idx == 1]
    if codec.study is not None and len(dots) == 1 and (g := dots[0].inputs[0]) is not None:
        with op.at(dots[0].metadata_props.get(LAYER, ""), before=dots[0]):
            saved = [*saved, *codec.study(op, saved, x, g)]
    for use in list(x.uses()):
        node, position = use.node, {"ChannelDot": 1, "ChannelAffine": 0, "Along": 1}.get(use.node.op_type)
        reader = codec.readers.get(node.op_type)
        if reader is None or use.idx != position or list(node.inputs).count(x) > 1:
            continue
        others = [value for i, value in enumerate(node.inputs) if i != position]
        replaced = node
        if node.op_type == "ChannelAffine":
            added = _only_added(node)
            others = [*others, *[None] * (2 - len(others)), added[1] if added else None]
            replaced = added[0] if added else node
        with op.at(node.metadata_props.get(LAYER, ""), before=replaced):
            made = reader(op, saved, x, *others)
        made.shape = replaced.outputs[0].shape
        nodes = [node] if replaced is node else [replaced, node]
        ir.convenience.replace_nodes_and_values(op.graph, replaced, nodes, [], replaced.outputs, [made])


def _only_added(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add that alone reads the node's output, and what it adds in the same shape; None if there is none."""
    (output,) = node.outputs
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != "Add":
        return None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    if other is None or other is output or dims(other) != dims(output):
        return None
    return add, other
