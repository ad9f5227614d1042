"""A copy of a graph for people: one box for each layer, which opens; the copy is not for engines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import onnx
from onnx import helper

from ttac.passes.graph.keys import LAYER, ROOM_KEY
from ttac.passes.graph.shorten import layer_in_name

MOST = 60
"""Most boxes of a picture; with more layers, the layers of a block share a box."""
DOMAIN = "ttac.layers"
SMALL = re.compile(r"[a-z]+\d*\(.*\)")
"""Names of constants that the rooms add, such as `int64([2, 3])`: the name is the content."""


@dataclass(frozen=True)
class Box:
    """Consecutive nodes of one layer or block; an empty name is a node that no layer owns."""

    name: str
    nodes: Sequence[onnx.NodeProto]


def folded(model: onnx.ModelProto, most: int = MOST) -> onnx.ModelProto:
    """Return the model with a function for each layer, or for each block if there are more than `most` layers.

    A box holds consecutive nodes, so that no box reads its own result through another box.  A graph without names of
    layers stays unchanged.  The data of the weights is left out, and constants such as axes are inside the boxes.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    small = {tensor.name: _copied(tensor) for tensor in copy.graph.initializer if SMALL.fullmatch(tensor.name)}
    for tensor in copy.graph.initializer:
        _forget_data(tensor)
    _hide_parameters(copy.graph)
    boxes = _boxes([*copy.graph.node], most)
    if not any(box.name for box in boxes):
        return copy
    del copy.graph.node[:], copy.graph.value_info[:]
    copy.ir_version = max(copy.ir_version, 8)
    copy.opset_import.add(domain=DOMAIN, version=1)
    outside = {value.name for value in copy.graph.output}
    readers = Counter(name for box in boxes for name in _inputs(box))
    totals, numbers = Counter(box.name for box in boxes), Counter[str]()
    for box in boxes:
        if not box.name or len(box.nodes) == 1:
            copy.graph.node.extend(box.nodes)
            continue
        numbers[box.name] += 1
        title = f"{box.name} ({numbers[box.name]})" if totals[box.name] > 1 else box.name
        made = [name for node in box.nodes for name in node.output if name and (readers[name] or name in outside)]
        _add_box(copy, Box(title, box.nodes), made, small)
    return copy


def _add_box(copy: onnx.ModelProto, box: Box, made: Sequence[str], small: Mapping[str, onnx.TensorProto]) -> None:
    """Add the box as a function and a node, with the outputs `made`; the `small` constants go into the function."""
    kind = box.name.replace(".", "/")  # Netron shows the part behind the last dot only
    read = [name for name in _inputs(box) if name not in small]
    own = [helper.make_node("Constant", [], [name], value=small[name]) for name in _inputs(box) if name in small]
    copy.graph.node.add(name=box.name, op_type=kind, domain=DOMAIN, input=read, output=made)
    function = copy.functions.add(name=kind, domain=DOMAIN, input=read, output=made, node=[*own, *box.nodes])
    function.opset_import.extend(entry for entry in copy.opset_import if entry.domain != DOMAIN)


def _copied(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _hide_parameters(graph: onnx.GraphProto) -> None:
    """Show parameters inside their nodes, and leave out the nodes that depend on them alone.

    A parameter is an input without samples, in a graph with others.  An output without samples disappears likewise,
    and so does each node that no other output needs.
    """
    if any(_has_samples(value) for value in graph.input):
        for value in [value for value in graph.input if not _has_samples(value)]:
            kind = value.type.tensor_type
            graph.initializer.add(name=value.name, data_type=kind.elem_type, dims=[d.dim_value for d in kind.shape.dim])
            _forget_data(graph.initializer[-1])
            graph.input.remove(value)
    if any(_has_samples(value) for value in graph.output):
        for value in [value for value in graph.output if not _has_samples(value)]:
            graph.output.remove(value)
        needed = {value.name for value in graph.output}
        for node in reversed([*graph.node]):
            if needed.isdisjoint(node.output):
                graph.node.remove(node)
            else:
                needed.update(node.input)


def _has_samples(value: onnx.ValueInfoProto) -> bool:
    """Whether a size of the value has a name, as the number of samples has."""
    return any(size.dim_param for size in value.type.tensor_type.shape.dim)


def _boxes(nodes: Sequence[onnx.NodeProto], most: int) -> list[Box]:
    """Runs of nodes with the same layer, cut to as many parts of its name as give at most `most` boxes."""
    layers = [_layer(node) for node in nodes]
    deepest = max((layer.count(".") + 1 for layer in layers), default=1)
    for depth in range(deepest, 0, -1):
        names = [".".join(layer.split(".")[:depth]) for layer in layers]
        boxes = list(_runs(nodes, names))
        if len(boxes) <= most:
            break
    return boxes


def _runs(nodes: Sequence[onnx.NodeProto], names: Sequence[str]) -> Iterator[Box]:
    """Boxes of consecutive nodes with the same name; a node without a layer joins the layer around it."""
    filled = list(names)
    for place in range(1, len(filled)):
        filled[place] = filled[place] or filled[place - 1]
    for name, pairs in groupby(zip(filled, nodes, strict=True), key=lambda pair: pair[0]):
        run = [node for _, node in pairs]
        yield from [Box(name, run)] if name else [Box("", [node]) for node in run]


def _layer(node: onnx.NodeProto) -> str:
    """The layer of the source network that owns the node, or the room that made a node of the method itself."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    room, layer = layer_in_name(node.name, node.op_type)
    return notes.get(LAYER) or layer or room or notes.get(ROOM_KEY, "")


def _inputs(box: Box) -> list[str]:
    """Names that the box reads and does not make, once each."""
    made = {name for node in box.nodes for name in node.output}
    return list(dict.fromkeys(name for node in box.nodes for name in node.input if name and name not in made))


def _forget_data(tensor: onnx.TensorProto) -> None:
    """Keep name, type and shape of a weight."""
    bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    bare.data_location = onnx.TensorProto.EXTERNAL
    bare.external_data.add(key="location", value="weights")
    tensor.CopyFrom(bare)
