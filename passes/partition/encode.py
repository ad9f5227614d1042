"""Write the codecs of a plan: encode directly behind the value, decode directly before the first reader."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER, LIKELY_BYTES, ROOM_KEY, SAMPLE_BYTES
from ttac.passes.graph.shapes import dims, is_batch, sample_size
from ttac.passes.graph.state import state_input
from ttac.passes.operators.random_numbers import Numbers, seeded
from ttac.passes.plan.codecs import CODECS
from ttac.passes.plan.codecs.codec import Codec, KeepRatio
from ttac.passes.plan.decisions import Decision, Plan
from ttac.passes.plan.keep_ratios import drawn

ROOM = "plan"
LIKELY = 1 / 3
"""Keep ratio of the average layer, as a fraction of the most important layer's; a measured value."""
READ_INPUT = {"ChannelDot": 1, "ChannelAffine": 0, "Along": 1}
"""Position of the input that a codec's reader takes encoded, by operator."""


def encode(forward: ir.Model, backward: ir.Model, plan: Plan) -> tuple[str, ...]:
    """Put the plan's codecs into both graphs, in place; return the names of the tensors that cross."""
    crossing: list[str] = []
    ratios, numbers = _keep_ratios(forward, plan), _drawn_numbers(forward, plan)
    for decision in plan.decisions:
        if decision.how == "recompute":
            continue
        if decision.how == "dense":
            crossing.append(decision.value)
            continue
        crossing += _encode_value(forward, backward, decision, ratios, numbers)
    for value in [*_added(forward.graph), *_added(backward.graph), *backward.graph.inputs]:
        if value.shape is not None:
            sizes = [f"{value.name}.size" if size is None else size for size in _sizes(value)]
            value.shape = ir.Shape(sizes)
    return tuple(crossing)


def _encode_value(
    forward: ir.Model, backward: ir.Model, decision: Decision, ratios: ir.Value | None, numbers: ir.Value | None
) -> list[str]:
    """Encode one value in `forward` and decode it in `backward`; return the names of the encoded tensors."""
    codec = CODECS[decision.how]
    x = next(v for v in forward.graph.outputs if v.name == decision.value)
    encoded = _add_encoder(forward, x, decision, codec, ratios, numbers)
    _add_decoder(backward, decision, codec, encoded)
    if codec.drops:
        assert x.shape is not None
        pieces = decision.keep_ratio * sample_size(x.shape) / math.prod(_known(encoded[0]))
        _mark_pieces([*_added(forward.graph), *_added(backward.graph)], pieces)
    return [str(value.name) for value in encoded]


def _added(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph if node.metadata_props.get(ROOM_KEY) == ROOM for value in node.outputs]


def _sizes(value: ir.Value) -> list[int | str | None]:
    assert value.shape is not None
    return [size if isinstance(size, int) else size.value for size in value.shape]


def _known(value: ir.Value) -> list[int]:
    return [size for size in _sizes(value) if isinstance(size, int)]


def _mark_pieces(values: Sequence[ir.Value], pieces: float) -> None:
    """Note the bytes of those `values` whose size depends on the data; a sample keeps `pieces` of them at most."""
    for value in values:
        if value.shape is None or value.dtype is None or SAMPLE_BYTES in value.meta:
            continue
        if any(size is None or (isinstance(size, str) and not is_batch(size)) for size in _sizes(value)):
            most = pieces * math.prod(_known(value)) * value.dtype.bitwidth / 8
            _mark_bytes([value], most, most * LIKELY)


def _keep_ratios(forward: ir.Model, plan: Plan) -> ir.Value | None:
    """Return the keep ratios of all layers, float32 [layers], as a graph input if they move, else as a constant."""
    if plan.keep_ratios is None:
        return None
    graph = forward.graph
    if plan.keep_ratios.moves:
        shape = [len(plan.keep_ratios.initial)]
        value = ir.val(plan.keep_ratios.name, dtype=ir.DataType.FLOAT, shape=shape)
        graph.inputs.append(value)
        return value
    return Builder(graph, ROOM, forward.opset_imports[""]).constant(plan.keep_ratios.initial)


def _drawn_numbers(forward: ir.Model, plan: Plan) -> ir.Value | None:
    """Return a new graph input for the state of the random numbers that draw the kept parts; None without draws."""
    if plan.keep_ratios is None or not plan.keep_ratios.numbers:
        return None
    return state_input(forward.graph, plan.keep_ratios.numbers, seeded(0))


def _add_encoder(
    forward: ir.Model,
    x: ir.Value,
    decision: Decision,
    codec: Codec,
    ratios: ir.Value | None,
    numbers: ir.Value | None,
) -> list[ir.Value]:
    """Replace the output `x` of `forward` by its encoded tensors, in place; return these tensors."""
    graph = forward.graph
    nodes = list(graph)
    producer = x.producer()
    assert producer is not None, "a residual is computed"
    op = Builder(graph, ROOM, forward.opset_imports[""])
    with op.at(decision.value, before=(*nodes, None)[nodes.index(producer) + 1]):
        ratio = None
        if codec.drops:
            assert ratios is not None
            order = drawn(Numbers(op, numbers), decision.layers[0], int(dims(x)[1])) if numbers is not None else None
            ratio = KeepRatio(_largest(op, ratios, decision.layers), op.ReduceMin(ratios, keepdims=0), order)
        encoded = list(codec.encode(op, x, ratio))
    _name(graph, encoded, list(codec.names(decision.value).values()))
    likely = codec.bytes(x, decision.keep_ratio * (LIKELY if codec.drops else 1.0))
    _mark_bytes(encoded, codec.bytes(x, decision.keep_ratio), likely)
    position = list(graph.outputs).index(x)
    graph.outputs[position : position + 1] = encoded
    return encoded


def _name(graph: ir.Graph, encoded: Sequence[ir.Value], names: Sequence[str]) -> None:
    """Name the encoded tensors; an intermediate that already has such a name, as a TopK may, gets another name."""
    for value in [v for node in graph for v in node.outputs if v.name in names]:
        value.name = f"{value.name}.all"
    for value, name in zip(encoded, names, strict=True):
        value.name = name


def _largest(op: Builder, ratios: ir.Value, layers: tuple[int, ...]) -> ir.Value:
    """Return the largest keep ratio of `layers`, a scalar."""
    picked = op.Gather(ratios, list(layers), axis=0)
    return op.ReduceMax(picked, keepdims=0) if len(layers) > 1 else op.Squeeze(picked, [0])


def _mark_bytes(encoded: Sequence[ir.Value], most: float, likely: float) -> None:
    """Note the largest and the usual bytes of all encoded tensors at the first one: shapes depend on the data."""
    for position, value in enumerate(encoded):
        value.meta[SAMPLE_BYTES] = most if position == 0 else 0.0
        value.meta[LIKELY_BYTES] = likely if position == 0 else 0.0


def _add_decoder(backward: ir.Model, decision: Decision, codec: Codec, encoded: list[ir.Value]) -> None:
    """Replace the input `decision.value` of `backward` by the encoded tensors and decode them, in place."""
    graph = backward.graph
    x = next(v for v in graph.inputs if v.name == decision.value)
    inputs = []
    for value in encoded:
        copy = ir.val(str(value.name), dtype=value.dtype, shape=value.shape)
        copy.meta.update(value.meta)
        inputs.append(copy)
    position = list(graph.inputs).index(x)
    graph.inputs[position : position + 1] = inputs
    op = Builder(graph, ROOM, backward.opset_imports[""])
    _read_encoded(op, x, codec, inputs)
    readers = {use.node for use in x.uses()}
    if not readers:
        return
    with op.at(decision.value, before=next(node for node in graph if node in readers)):
        decoded = codec.decode(op, inputs, x)
    ir.convenience.replace_all_uses_with(x, decoded)


def _read_encoded(op: Builder, x: ir.Value, codec: Codec, encoded: list[ir.Value]) -> None:
    """Replace each reader of `x` that the codec can compute from the encoded tensors, in place."""
    dots = [use.node for use in x.uses() if use.node.op_type == "ChannelDot" and use.idx == 1]
    if codec.estimate is not None and len(dots) == 1 and (g := dots[0].inputs[0]) is not None:
        with op.at(dots[0].metadata_props.get(LAYER, ""), before=dots[0]):
            encoded = [*encoded, *codec.estimate(op, encoded, x, g)]
    for use in list(x.uses()):
        node, position = use.node, READ_INPUT.get(use.node.op_type)
        if node.op_type in codec.readers and use.idx == position and list(node.inputs).count(x) == 1:
            _replace_reader(op, node, x, codec, encoded)


def _replace_reader(op: Builder, node: ir.Node, x: ir.Value, codec: Codec, encoded: list[ir.Value]) -> None:
    """Replace `node`, and an Add that alone reads a ChannelAffine, by the codec's reader, in place."""
    others = [value for i, value in enumerate(node.inputs) if i != READ_INPUT[node.op_type]]
    replaced = node
    if node.op_type == "ChannelAffine":
        added = _only_added(node)
        others = [*others, *[None] * (2 - len(others)), added[1] if added else None]
        replaced = added[0] if added else node
    with op.at(node.metadata_props.get(LAYER, ""), before=replaced):
        output = codec.readers[node.op_type](op, encoded, x, *others)
    output.shape = replaced.outputs[0].shape
    nodes = [node] if replaced is node else [replaced, node]
    ir.convenience.replace_nodes_and_values(op.graph, replaced, nodes, [], replaced.outputs, [output])


def _only_added(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Return the only reader of the node's output if an Add, with the other addend of equal shape; else None."""
    (output,) = node.outputs
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != "Add":
        return None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    if other is None or other is output or dims(other) != dims(output):
        return None
    return add, other
