"""`op.Mul(x, 2.0)`: appends nodes to a graph, with types, provenance and readable names.

A Python float becomes a scalar of the first floating operand's dtype; an int or a list of ints becomes int64; a numpy
array is taken as it is.  Equal constants share one initializer, named after what it holds.
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

Operand = ir.Value | float | int | Sequence[int] | np.ndarray | None


SHOWN_ELEMENTS, CACHED_TYPES = 1 << 14, 1 << 14
"""Elements up to which the inference sees what a constant holds; answers of it that are remembered."""

_KINDS = ir.AttributeType
PLAIN = frozenset({_KINDS.INT, _KINDS.FLOAT, _KINDS.STRING, _KINDS.INTS, _KINDS.FLOATS, _KINDS.STRINGS})
"""Attributes that can be compared at no cost."""

if TYPE_CHECKING:

    class Output(ir.Value):
        """What an operator returns, to a type checker: its output, which unpacks where there are several."""

        def __iter__(self) -> Iterator[ir.Value]: ...

        def __getitem__(self, position: int) -> ir.Value: ...


class Builder:
    """Adds nodes at the end of `graph`; any attribute is an operator: `op.Conv(x, w, pads=[1, 1, 1, 1])`.

    Operators of the ttac vocabulary (`op.Moments`) and of ONNX share the notation.  An operator with several outputs
    returns a tuple.  Output names grow from `name=`, or from the layer and the operator.  `like=value` says that the
    output has that value's shape where inference cannot know it (a Reshape to [-1, ...] restores the batch axis "N").
    """

    def __init__(self, graph: ir.Graph, room: str, opset: int = 18) -> None:
        self.graph, self.room, self.opset, self.layer = graph, room, opset, ""
        self._taken = _names(graph)
        self._before: ir.Node | None = None

    @contextmanager
    def at(self, layer: str, before: ir.Node | None = None) -> Iterator[Builder]:
        """Nodes made inside belong to `layer`; with `before`, they are inserted in front of that node."""
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
            made = self.node(op_type, operands, attributes, name=name, outputs=outputs)
            if like is not None:
                made.shape = like.shape
            return made

        return make

    def node(
        self, op_type: str, operands: Iterable[Operand], attributes: dict[str, Any], *, name: str = "", outputs: int = 0
    ) -> Any:
        """Append one node and return its output Value, or the tuple of them.

        `outputs` fixes the number of outputs where the operator leaves it open (Split, MaxPool with indices).
        """
        inputs = self._operands(list(operands))
        composite = composites.COMPOSITES.get(op_type)
        domain = composites.DOMAIN if composite else ""
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs or self._arity(op_type))
        types = composite.types(node) if composite else infer(node, self.opset)
        for position, (value, (dtype, shape)) in enumerate(zip(node.outputs, types, strict=True)):
            value.type, value.shape = ir.TensorType(dtype) if dtype is not None else None, shape
            value.name = self._fresh(self._suffixed(name, op_type, position))
        node.name = node.outputs[0].name
        node.metadata_props[ROOM_KEY] = self.room
        if self.layer:
            node.metadata_props[LAYER] = self.layer
        if self._before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._before, node)
        return node.outputs[0] if len(node.outputs) == 1 else tuple(node.outputs)

    def constant(self, array: np.ndarray) -> ir.Value:
        """The initializer that holds `array`; made once for equal contents."""
        name = _constant_name(array)
        if name not in self.graph.initializers:
            value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name))
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def _operands(self, operands: list[Operand]) -> list[ir.Value | None]:
        known = [operand.dtype for operand in operands if isinstance(operand, ir.Value) and operand.dtype is not None]
        dtype = next((dtype for dtype in known if dtype.is_floating_point()), ir.DataType.FLOAT)
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

    def _fresh(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._taken:
            count += 1
            candidate = f"{name}.{count}"
        self._taken.add(candidate)
        return candidate


Types = list[tuple[ir.DataType | None, ir.Shape | None]]
_inferred: dict[Any, Types] = {}
"""What `infer` found before: a deep net asks the same of every block."""


def infer(node: ir.Node, opset: int) -> Types:
    """Types of a standard node's outputs, by onnx's own inference of that one operator.

    Raises UnsupportedError when the operator does not exist in `opset` or rejects its inputs.
    """
    key = _signature(node, opset)
    if key is None or key not in _inferred:
        found = _infer(node, opset)
        if key is None:
            return found
        if len(_inferred) >= CACHED_TYPES:
            _inferred.clear()
        _inferred[key] = found
    return [(dtype, None if shape is None else shape.copy()) for dtype, shape in _inferred[key]]


def _signature(node: ir.Node, opset: int) -> Any:
    """All that the inference depends on; None where comparing it would cost more than inferring."""
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
        held = value.const_value
        data = held.tobytes() if held is not None and held.size <= SHOWN_ELEMENTS else None
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
        found = onnx.shape_inference.infer_node_outputs(
            schema, serialize_node(node), types, data, opset_imports=[onnx.helper.make_opsetid("", opset)]
        )
    except Exception as error:
        raise UnsupportedError(f"cannot type `{node.op_type}`: {error}", where=f"node `{node.name}`") from error
    return [_type_of(found.get(str(value.name))) for value in node.outputs]


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
