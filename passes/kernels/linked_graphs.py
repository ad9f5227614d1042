"""The graphs of a step as one network: an input of a graph is the output of the same name of an earlier graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.match import array_of, made_by
from ttac.passes.graph.shapes import dims
from ttac.passes.partition.partition import drop_unread_inputs
from ttac.runtime.graph_check import KERNEL_DOMAIN

ROOM = "kernels"
VERSION, OLDEST = 7, 3
"""Newest and oldest version of the operator set; graphs state the oldest one that has their operators."""
SINCE = {
    **dict.fromkeys("ConvWeightGrad ReorderWeights QuantizeRows DequantizeRows RestoreBlocks AdamStep".split(), 4),
    **dict.fromkeys("ByteMoments SignedByteMoments ByteNorm SignedByteNorm".split(), 6),
    **dict.fromkeys("DepthwiseForward DepthwiseBackward".split(), 7),
}
"""Operator -> the version that has it, or in which its outputs may be absent; the oldest one for others."""
BITS_OF_BACKWARD, MORE_OF_BACKWARD = 8, 9
"""Numbers of the inputs `bits` and `more` of NormBackward, since version 4 and version 5."""
WINDOW = ("kernel_shape", "strides", "pads")
"""Attributes of a window."""
WHOLE_BLOCK = 16
"""Channels of the largest block."""

MOST_COMPARED = 1 << 14
"""Most elements of two constants whose bytes are compared."""

Type = tuple[ir.DataType, Sequence[int | str]]


class LinkedGraphs:
    """Graphs in the order in which they run; changes are made in place."""

    def __init__(self, models: Mapping[str, ir.Model]) -> None:
        self.models = dict(models)
        self._order = {id(model.graph): i for i, model in enumerate(self.models.values())}
        self._moved: dict[ir.Graph, ir.Value] = {}
        self._made = {str(v.name): v for model in self.models.values() for v in model.graph.outputs}

    def nodes(self, *op_types: str) -> Iterator[ir.Node]:
        """Standard nodes of these operators, in the order in which they run."""
        for model in self.models.values():
            yield from [node for node in model.graph if node.op_type in op_types and not node.domain]

    def kernels(self, op_type: str) -> list[ir.Node]:
        """Nodes of the library with this operator, in the order in which they run."""
        nodes = [node for model in self.models.values() for node in model.graph]
        return [node for node in nodes if node.domain == KERNEL_DOMAIN and node.op_type == op_type]

    def source(self, value: ir.Value | None) -> ir.Value | None:
        """The value that `value` is a copy of: behind links between graphs, and behind gradient dependencies."""
        while value is not None:
            if value.is_graph_input() and self._is_linked(value):
                value = self._made[str(value.name)]
            elif _waits(value):
                value = value.producer().inputs[0]  # type: ignore[union-attr]
            else:
                break
        return value

    def _is_linked(self, value: ir.Value) -> bool:
        made = self._made.get(str(value.name))
        return made is not None and self.place(made) < self.place(value)

    def place(self, value: ir.Value) -> int:
        """Position of the graph that has `value`."""
        return self._order[id(value.graph)]

    def key(self, value: ir.Value | None) -> object:
        """Equal for values that are the same: a computed value, an input of the step, or the bytes of a constant."""
        source = self.source(value)
        if source is None:
            return None
        if source.is_graph_input():
            return "input", source.name
        held = source.const_value
        small = held is not None and held.size <= MOST_COMPARED
        return ("constant", held.numpy().shape, held.numpy().tobytes()) if small and held is not None else source

    def made_by(self, value: ir.Value | None, *op_types: str) -> ir.Node | None:
        """The standard node that makes `value`, in whatever graph, if its operator is one of `op_types`."""
        node = made_by(self.source(value), *op_types)
        return node if node is not None and not node.domain else None

    def readers(self, value: ir.Value) -> list[ir.Node]:
        """The nodes that read `value`, in its graph and in later ones, behind gradient dependencies."""
        found: list[ir.Node] = []
        copies = [value]
        if value.is_graph_output():
            later = [g for m in self.models.values() for g in [m.graph] if self._order[id(g)] > self.place(value)]
            copies += [v for graph in later for v in graph.inputs if v.name == value.name]
        for copy in copies:
            for node in dict.fromkeys(use.node for use in copy.uses()):
                waits = node.op_type == "Reshape" and _waits(node.outputs[0]) and node.inputs[0] is copy
                found += self.readers(node.outputs[0]) if waits else [node]
        return found

    def insert(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        types: Sequence[Type | None],
        **more: Any,
    ) -> list[ir.Value]:
        """Insert one node of the library in front of `before`; an output without a type is absent."""
        graph = before.graph
        assert graph is not None
        local = [self.read(graph, value) if value is not None else None for value in inputs]
        with Builder(graph, ROOM).at(before.metadata_props.get(LAYER, ""), before=before) as op:
            return place_kernel(op, op_type, local, types, **{"block": 1, **more})

    def read(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """`value` for a node of `graph`: itself, or the input of `graph` that an earlier graph or the caller fills."""
        value = self.source(value) or value
        if value.graph is graph:
            return value
        for port in graph.inputs:
            if port.name == value.name:
                return port
        if value.producer() is not None and not value.is_graph_output():
            self._give_out(value)
        port = ir.Value(name=value.name, type=value.type, shape=value.shape)
        graph.inputs.append(port)
        return port

    def _give_out(self, value: ir.Value) -> None:
        """Make `value` an output, under a name that no graph uses."""
        node = value.producer()
        assert node is not None and node.graph is not None
        taken = {str(v.name) for m in self.models.values() for n in m.graph for v in n.outputs if v is not value}
        while value.name in taken | set(self._made):
            value.name = f"{value.name}.kept"
        self._made[str(value.name)] = value
        node.graph.outputs.append(value)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let all readers of `old`, in its graph and in later ones, read `new` of the same or an earlier graph."""
        here, there, name = old.graph, new.graph, str(old.name)
        assert here is not None and there is not None
        if here is there:
            old.name, new.name = f"{name}.replaced", name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        elif old.is_graph_output():
            here.outputs.remove(old)
            old.name, new.name = f"{name}.replaced", name
            there.outputs.append(new)
            self._moved[here] = new
        if new.is_graph_output():
            self._made[name] = new
        if here is not there:
            old.replace_all_uses_with(self.read(here, new))

    def tidy(self, outside: Collection[str]) -> None:
        """Drop nodes and ports that neither `outside` nor a later graph reads, and sort the nodes."""
        read = set(outside)
        for model in reversed(self.models.values()):
            graph = model.graph
            graph.outputs[:] = [value for value in graph.outputs if value.name in read]
            common.RemoveUnusedNodesPass()(model)
            _drop_unread_outputs(graph)
            drop_unread_inputs(graph)
            if not len(graph):
                self._refill(graph)
            graph.sort()
            if version := version_of(graph):
                model.opset_imports[KERNEL_DOMAIN] = version
            read |= {str(value.name) for value in graph.inputs}

    def _refill(self, graph: ir.Graph) -> None:
        """Let a graph that lost all nodes pass on one of its former outputs: engines refuse an empty graph."""
        value = self._moved[graph]
        name = str(value.name)
        value.name = f"{name}.early"
        self._made[str(value.name)] = value
        port = ir.Value(name=value.name, type=value.type, shape=value.shape)
        graph.inputs.append(port)
        passed = Builder(graph, ROOM).Identity(port)
        passed.name = name
        graph.outputs.append(passed)


def place_kernel(
    op: Builder, op_type: str, inputs: Sequence[ir.Value | None], types: Sequence[Type | None], **attributes: Any
) -> list[ir.Value]:
    """Insert one node of the library at the place of `op`; an output without a type is absent."""
    node = ir.node(op_type, _trimmed(list(inputs)), attributes, domain=KERNEL_DOMAIN, num_outputs=len(types))
    for value, type_ in zip(node.outputs, types, strict=True):
        if type_ is None:
            value.name = ""
        else:
            value.type, value.shape = ir.TensorType(type_[0]), ir.Shape(list(type_[1]))
    op.place(node, op_type.lower())
    return list(node.outputs)


def version_of(nodes: Iterable[ir.Node]) -> int:
    """The version of the operator set that the nodes need; 0 if none is a node of the library."""
    return max((_version(node) for node in nodes if node.domain == KERNEL_DOMAIN), default=0)


def _version(node: ir.Node) -> int:
    inputs = len(node.inputs) if node.op_type == "NormBackward" else 0
    if inputs > MORE_OF_BACKWARD:
        return 5
    return 4 if inputs > BITS_OF_BACKWARD else SINCE.get(node.op_type, OLDEST)


def window_attributes(node: ir.Node, w: ir.Value | None) -> dict[str, Any]:
    """The window of a convolution with the kernel `w`, as attributes of a node of the library."""
    stated = {name: node.attributes[name].value for name in WINDOW if name in node.attributes}
    return {"kernel_shape": dims(w)[2:], "strides": [1, 1], "pads": [0, 0, 0, 0], **stated}


def fills_blocks(channels: int) -> bool:
    """Whether blocks of so many channels have at most a quarter of padding, whatever their size."""
    return channels % 4 == 0 and 4 * channels >= 3 * (channels + -channels % WHOLE_BLOCK)


def _drop_unread_outputs(graph: ir.Graph) -> None:
    """Make the outputs of nodes of the library that nothing reads absent; y of NormForward is never absent."""
    for node in graph:
        if node.domain == KERNEL_DOMAIN:
            for value in node.outputs[1:]:
                if not value.uses() and not value.is_graph_output():
                    value.name = ""


def _waits(value: ir.Value) -> bool:
    """Whether `value` is a Reshape of a value to its own shape, which only makes it wait."""
    node = made_by(value, "Reshape")
    if node is None or node.inputs[0] is None:
        return False
    shape = made_by(node.inputs[1], "Min")
    kept = array_of(shape.inputs[1]) if shape is not None and len(shape.inputs) == 2 else None
    return kept is not None and not kept.any() and made_by(shape.inputs[0], "Size") is not None  # type: ignore[union-attr]


def _trimmed(values: list[ir.Value | None]) -> list[ir.Value | None]:
    """The values without absent ones at the end."""
    while values and values[-1] is None:
        values = values[:-1]
    return values
