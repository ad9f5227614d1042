"""Leave out of 8-bit graph files everything that a reader can derive: it would be a tenth of their weights."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir

from ttac.passes.graph.keys import LAYER, ROOM_KEY

ROOM = "emit"
SHARED_BYTES = 128
"""Smallest constant, in bytes, that several graphs share in the weights file; repeating a smaller one takes no more."""
ROUNDINGS = {
    "QuantizeLinear": "int8",
    "DequantizeLinear": r"rounded|kernel|bias\.rounded",
    "Cast": "counted",
    "Mul": r"bias\.scale",
}
"""Endings, by operator, of the names that the 8-bit room gives to its nodes."""


def is_8_bit(graph: ir.Graph) -> bool:
    """Return whether some layers of `graph` run in 8 bits."""
    return any(node.op_type == "DequantizeLinear" for node in graph)


def constant_vectors(model: ir.Model, kept: Collection[str]) -> set[str]:
    """Return the names of an 8-bit graph's vectors that repeat one number."""
    if not is_8_bit(model.graph):
        return set()
    held = {name: value.const_value for name, value in model.graph.initializers.items() if name not in kept}
    vectors = {
        name: t.numpy() for name, t in held.items() if t is not None and len(t.shape) == 1 and t.nbytes > SHARED_BYTES
    }
    return {name for name, array in vectors.items() if (array == array[0]).all()}


def fill(proto: onnx.ModelProto, names: Collection[str]) -> None:
    """Let the engine fill the named constants while it loads: zero points, and statistics that are 0 and 1."""
    graph = proto.graph
    tensors = [tensor for tensor in graph.initializer if tensor.name in names]
    others = [tensor for tensor in graph.initializer if tensor.name not in names]
    sizes = {int(tensor.dims[0]) for tensor in tensors}
    known = {tensor.name for tensor in others}
    shapes = {size: f"int64([{size}])" for size in sizes}
    lengths = [
        onnx.numpy_helper.from_array(np.array([size], np.int64), name)
        for size, name in sorted(shapes.items())
        if name not in known
    ]
    nodes = []
    for tensor in tensors:
        value = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)[:1])
        shape = shapes[int(tensor.dims[0])]
        node = onnx.helper.make_node("ConstantOfShape", [shape], [tensor.name], name=tensor.name, value=value)
        node.metadata_props.add(key=ROOM_KEY, value=ROOM)
        nodes.append(node)
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*others, *lengths])
    graph.node.extend(nodes)


def shorten(proto: onnx.ModelProto, kept: Collection[str]) -> None:
    """Remove from an 8-bit graph the text that a reader can derive; it would be a tenth of the weights.

    Shapes stay where one layer hands a value to another, and where only the library's node knows them. Room and layer
    stay on nodes whose names do not contain them.
    """
    graph = proto.graph
    _join_scalars(graph, kept)
    layers = {name: _note(node, LAYER) for node in graph.node for name in node.output}
    handed = {x for node in graph.node for x in node.input if x in layers and layers[x] != _note(node, LAYER)}
    handed |= {name for node in graph.node if node.domain for name in node.output}
    shapes = [value for value in graph.value_info if value.name in handed and value.type.tensor_type.shape.dim]
    del graph.value_info[:]
    graph.value_info.extend(shapes)
    for node in graph.node:
        room, layer = layer_in_name(node.name, node.op_type)
        if layer and layer == _note(node, LAYER):
            known = {LAYER, ROOM_KEY} if room == _note(node, ROOM_KEY) else {LAYER}
            notes = [note for note in node.metadata_props if note.key not in known]
            del node.metadata_props[:]
            node.metadata_props.extend(notes)


def _join_scalars(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    """Merge equal constants of one element, under the shortest of their names."""
    equal: dict[tuple[int, bytes], list[str]] = {}
    for tensor in graph.initializer:
        if not tensor.dims and tensor.raw_data and tensor.name not in kept:
            equal.setdefault((tensor.data_type, tensor.raw_data), []).append(tensor.name)
    chosen = {name: min(names, key=lambda name: (len(name), name)) for names in equal.values() for name in names}
    left = [tensor for tensor in graph.initializer if chosen.get(tensor.name, tensor.name) == tensor.name]
    del graph.initializer[:]
    graph.initializer.extend(left)
    for node in graph.node:
        node.input[:] = [chosen.get(name, name) for name in node.input]


def _note(node: onnx.NodeProto, key: str) -> str:
    return next((str(note.value) for note in node.metadata_props if note.key == key), "")


def layer_in_name(name: str, op_type: str) -> tuple[str, str]:
    """Return room and layer of a node as far as its name contains them.

    `conv1.kernel`, a DequantizeLinear, belongs to the 8-bit room and layer `conv1`; `conv1.mul.2`, a Mul, to layer
    `conv1`.
    """
    if op_type in ROUNDINGS and (match := re.fullmatch(rf"(.+?)\.({ROUNDINGS[op_type]})(\.\d+)?", name)):
        return "quantize", match[1]
    match = re.fullmatch(rf"(.+?)\.{op_type.lower()}(\.\d+)?", name)
    return "", match[1] if match else ""
