"""Append nodes to a graph, `op.Mul(x, 2.0)`, with types, the room that made them, and readable names.

A Python float becomes a scalar of the first floating operand's dtype. An int or a list of ints becomes int64. A numpy
array keeps its dtype. Equal constants share one initializer, named after its contents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.serde import serialize_node, serialize_tensor

from ttac.errors import UnsupportedError
from ttac.passes.graph import composites
from ttac.passes.graph.keys import LAYER, ROOM_KEY
from ttac.passes.graph.places import node_place
from ttac.passes.graph.rewire import initializer

Operand = ir.Value | float | int | Sequence[int] | np.ndarray | None


SHOWN_ELEMENTS = 1 << 14
"""Largest constant, in elements, whose contents the shape inference sees."""

CACHED_TYPES = 1 << 14
"""Largest number of inference results in the cache; one more empties it."""

_KINDS = ir.AttributeType
PLAIN = frozenset({_KINDS.INT, _KINDS.FLOAT, _KINDS.STRING, _KINDS.INTS, _KINDS.FLOATS, _KINDS.STRINGS})
"""Kinds of attributes that are cheap to compare."""

if TYPE_CHECKING:

    class Output(ir.Value):
        """Result of an operator, for a type checker: one value, which unpacks where the operator has several."""

        def __iter__(self) -> Iterator[ir.Value]: ...

        def __getitem__(self, position: int) -> ir.Value: ...


class Builder:
    """Appends nodes to `graph`; any attribute is an operator: `op.Conv(x, w, pads=[1, 1, 1, 1])`.

    ttac's operators (`op.Moments`) and those of ONNX share the notation. An operator with several outputs returns a
    tuple. Output names grow from `name=`, or from the layer and the operator. `like=value` gives the output that
    value's shape where inference cannot know the shape (a Reshape to [-1, ...] restores the batch axis "N").
    """

    def __init__(self, graph: ir.Graph, room: str, opset: int = 18) -> None:
        self.graph, self.room, self.opset, self.layer = graph, room, opset, ""
        self._taken = _names(graph)
        self._before: ir.Node | None = None

    @contextmanager
    def at(self, layer: str, before: ir.Node | None = None) -> Iterator[Builder]:
        """Give the nodes of the block to `layer`; with `before`, insert them in front of that node."""
        outer = self.layer, self._before
        self.layer, self._before = layer, before if before is not None else self._before
        try:
            yield self
        finally:
            self.layer, self._before = outer

    def __getattr__(self, op_type: str) -> Callable[..., Output]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)

        def make(
            *operands: Operand, name: str = "", outputs: int = 0, like: ir.Value | None = None, **attributes: Any
        ) -> Any:
            output = self.node(op_type, operands, attributes, name=name, outputs=outputs)
            if like is not None:
                output.shape = like.shape
            return output

        return make

    def node(
        self, op_type: str, operands: Iterable[Operand], attributes: dict[str, Any], *, name: str = "", outputs: int = 0
    ) -> Any:
        """Append one node and return its output Value, or the tuple of its outputs.

        `outputs` fixes the number of outputs where the operator leaves the number open (Split, MaxPool with indices).
        """
        inputs = self._operands(list(operands))
        composite = composites.COMPOSITES.get(op_type)
        domain = composites.DOMAIN if composite else ""
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs or self._arity(op_type))
        types = composite.types(node) if composite else infer(node, self.opset)
        for position, (value, (dtype, shape)) in enumerate(zip(node.outputs, types, strict=True)):
            value.type, value.shape = ir.TensorType(dtype) if dtype is not None else None, shape
            value.name = self.fresh(self._suffixed(name, op_type, position))
        self._insert(node)
        return node.outputs[0] if len(node.outputs) == 1 else tuple(node.outputs)

    def place(self, node: ir.Node, suffix: str) -> None:
        """Name the node and its outputs after the layer, and insert the node; an output named "" is absent."""
        for value in node.outputs:
            if value.name != "":
                value.name = self.fresh(".".join(part for part in (self.layer, suffix) if part))
        self._insert(node)

    def _insert(self, node: ir.Node) -> None:
        node.name = next(value.name for value in node.outputs if value.name)
        node.metadata_props[ROOM_KEY] = self.room
        if self.layer:
            node.metadata_props[LAYER] = self.layer
        if self._before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._before, node)

    def constant(self, array: np.ndarray) -> ir.Value:
        """Return the initializer with the contents of `array`; equal contents share one initializer."""
        name = _constant_name(array)
        if name not in self.graph.initializers:
            initializer(self.graph, name, array)
        return self.graph.initializers[name]

    def _operands(self, operands: list[Operand]) -> list[ir.Value | None]:
        dtypes = [operand.dtype for operand in operands if isinstance(operand, ir.Value) and operand.dtype is not None]
        dtype = next((dtype for dtype in dtypes if dtype.is_floating_point()), ir.DataType.FLOAT)
        return [self._operand(operand, dtype) for operand in operands]

    def _operand(self, operand: Operand, dtype: ir.DataType) -> ir.Value | None:
        if operand is None or isinstance(operand, ir.Value):
            return operand
        if isinstance(operand, float):
            return self.constant(np.array(operand, dtype.numpy()))
        if isinstance(operand, np.ndarray):
            return self.constant(operand)
        return self.constant(np.array(operand, np.int64))

    def _arity(self, op_type: str) -> int:
        if op_type in composites.COMPOSITES:
            return composites.COMPOSITES[op_type].outputs
        return onnx.defs.get_schema(op_type, self.opset, "").min_output

    def _suffixed(self, name: str, op_type: str, position: int) -> str:
        base = name or ".".join(part for part in (self.layer, op_type.lower()) if part)
        return f"{base}.{position}" if position else base

    def fresh(self, name: str) -> str:
        """Return `name`, or the first free name of `name.2`, `name.3`, ..., and take it."""
        candidate, count = name, 1
        while candidate in self._taken:
            count += 1
            candidate = f"{name}.{count}"
        self._taken.add(candidate)
        return candidate


Types = list[tuple[ir.DataType | None, ir.Shape | None]]
_inferred: dict[Any, Types] = {}
"""Cache of `infer`: the blocks of a deep network ask the same questions."""


def infer(node: ir.Node, opset: int) -> Types:
    """Return dtype and shape of each output of a standard node, by onnx's own inference of this operator.

    Raises UnsupportedError when the operator does not exist in `opset` or rejects its inputs.
    """
    key = _signature(node, opset)
    if key is None or key not in _inferred:
        types = _infer(node, opset)
        if key is None:
            return types
        if len(_inferred) >= CACHED_TYPES:
            _inferred.clear()
        _inferred[key] = types
    return [(dtype, None if shape is None else shape.copy()) for dtype, shape in _inferred[key]]


def _signature(node: ir.Node, opset: int) -> Any:
    """Return a key of everything that the inference depends on; None where comparing costs more than inferring."""
    attributes = []
    for name, attribute in node.attributes.items():
        if attribute.type not in PLAIN:
            return None
        value = attribute.value
        attributes.append((name, attribute.type, value if isinstance(value, str | int | float) else tuple(value)))
    operands: list[Any] = []
    for value in node.inputs:
        if value is None:
            operands.append(None)
            continue
        tensor = value.const_value
        data = tensor.tobytes() if tensor is not None and tensor.size <= SHOWN_ELEMENTS else None
        dims = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
        operands.append((value.dtype, dims, data))
    return node.op_type, opset, len(node.outputs), tuple(attributes), tuple(operands)


def _infer(node: ir.Node, opset: int) -> Types:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        inputs = [value for value in node.inputs if value is not None]
        types = {str(v.name): _type_proto(v) for v in inputs}
        known = [(str(v.name), v.const_value) for v in inputs]
        data = {
            name: serialize_tensor(held) for name, held in known if held is not None and held.size <= SHOWN_ELEMENTS
        }
        for position, value in enumerate(node.outputs):
            value.name = value.name or f"output.{position}"
        outputs = onnx.shape_inference.infer_node_outputs(
            schema, serialize_node(node), types, data, opset_imports=[onnx.helper.make_opsetid("", opset)]
        )
    except Exception as error:
        raise UnsupportedError(f"cannot type `{node.op_type}`: {error}", where=node_place(node)) from error
    return [_type_of(outputs.get(str(value.name))) for value in node.outputs]


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    dims = None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    return onnx.helper.make_tensor_type_proto(int(value.dtype or 0), dims)


def _type_of(proto: onnx.TypeProto | None) -> tuple[ir.DataType | None, ir.Shape | None]:
    if proto is None:
        return None, None
    tensor = proto.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim]
    return ir.DataType(tensor.elem_type), ir.Shape(shape) if tensor.HasField("shape") else None


def _names(graph: ir.Graph) -> set[str]:
    values = {str(v.name) for v in graph.inputs} | set(graph.initializers)
    return values | {str(v.name) for node in graph for v in node.outputs}


def _constant_name(array: np.ndarray) -> str:
    if array.size <= 8:
        return f"{array.dtype}({array.tolist()})"
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]
    return f"{array.dtype}{list(array.shape)}#{digest}"
