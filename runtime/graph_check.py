"""The graphs of a bundle, read strictly before an engine sees them.

A reader of protobuf skips a field that it does not know, and readers disagree about odd encodings.  So a graph is
refused if it has a field or an encoding that ttac does not write.  The field numbers are those of `onnx.proto`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttac.errors import VerificationError
from ttac.runtime.json_values import HINT

DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Operator domains of portable graphs."""

BLOCKED_DOMAINS = ("com.microsoft.nchwc",)
"""Further operator domains of the graphs of a form: the engine's blocked layout."""

KERNEL_DOMAIN = "ttac.kernels"
"""Operator domain of the library `ttac-kernels`, for the graphs of a form that names it."""

LARGEST_ELEMENTS = 1 << 28
"""Most elements of a tensor that a graph makes from a constant shape: 1 GiB of float32."""

MOST_FIELDS = 4_000_000
"""Most protobuf fields of a graph; the largest models have some 200,000."""

INT, FIXED32, FIXED64, BYTES = "int", "fixed32", "fixed64", "bytes"
WIRE = {INT: 0, FIXED64: 1, BYTES: 2, FIXED32: 5}

Schema = Mapping[int, tuple[str, bool]]


def _schema(one: Mapping[int, str], many: Mapping[int, str] | None = None) -> Schema:
    return {**{n: (kind, False) for n, kind in one.items()}, **{n: (kind, True) for n, kind in (many or {}).items()}}


MODEL: dict[str, Schema] = {
    "model": _schema({1: INT, 2: BYTES, 3: BYTES, 4: BYTES, 5: INT, 6: BYTES, 7: "graph"}, {8: "opset", 14: "entry"}),
    "opset": _schema({1: BYTES, 2: INT}),
    "entry": _schema({1: BYTES, 2: BYTES}),
    "graph": _schema(
        {2: BYTES, 10: BYTES},
        {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "annotation", 16: "entry"},
    ),
    "node": _schema({3: BYTES, 4: BYTES, 6: BYTES, 7: BYTES}, {1: BYTES, 2: BYTES, 5: "attribute", 9: "entry"}),
    "attribute": _schema(
        {1: BYTES, 2: FIXED32, 3: INT, 4: BYTES, 5: "tensor", 6: "body", 13: BYTES, 20: INT},
        {7: FIXED32, 8: INT, 9: BYTES},
    ),
    "body": _schema(
        {2: BYTES, 10: BYTES}, {1: "inner node", 11: "value", 12: "value", 13: "value", 14: "annotation", 16: "entry"}
    ),
    "inner node": _schema({3: BYTES, 4: BYTES, 6: BYTES, 7: BYTES}, {1: BYTES, 2: BYTES, 5: "plain", 9: "entry"}),
    "plain": _schema({1: BYTES, 2: FIXED32, 3: INT, 4: BYTES, 13: BYTES, 20: INT}, {7: FIXED32, 8: INT, 9: BYTES}),
    "tensor": _schema(
        {2: INT, 8: BYTES, 9: BYTES, 12: BYTES, 14: INT},
        {1: INT, 4: FIXED32, 5: INT, 7: INT, 10: FIXED64, 11: INT, 13: "entry", 16: "entry"},
    ),
    "value": _schema({1: BYTES, 2: "type", 3: BYTES}, {4: "entry"}),
    "type": _schema({1: "tensor type", 6: BYTES}),
    "tensor type": _schema({1: INT, 2: "shape"}),
    "shape": _schema({}, {1: "size"}),
    "size": _schema({1: INT, 2: BYTES, 3: BYTES}),
    "annotation": _schema({1: BYTES}, {2: "entry"}),
}
"""Message -> field number -> kind or message of the field, and whether it may repeat.

Absent on purpose: functions, training information, sparse tensors, strings in tensors, and types other than tensors.
ttac writes none of them.  A body is the subgraph of a Scan, which takes one step for each slice of its inputs, so it
ends.  A body has no tensors and no bodies.
"""

ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""ONNX element type -> bytes of an element."""

INT64, EXTERNAL = 7, 1

SHAPE_INPUT = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Resize": 3, "Pad": 1, "Range": 1, "OneHot": 1}
"""Operator -> its input that decides the size of the output."""


@dataclass(frozen=True)
class External:
    """Place of a tensor's data: file name, offset and length in bytes."""

    location: str
    offset: int
    length: int


Message = dict[int, list[Any]]


MOST_REMEMBERED = 1024
"""Most graphs that the process remembers as checked."""

_passed: dict[tuple[str, frozenset[str]], Sequence[External]] = {}


def check_hashed_graph(data: np.ndarray, digest: str, where: str, domains: Collection[str] = ()) -> Sequence[External]:
    """`check_graph` of bytes with this SHA-256, which the caller has verified.

    A graph that passed is not read again: the check takes most of the time of loading a small bundle a second time.
    """
    key = digest, frozenset(domains)
    found = _passed.get(key)
    if found is None:
        found = check_graph(data.tobytes(), where, domains)
        if len(_passed) >= MOST_REMEMBERED:
            _passed.clear()
        _passed[key] = found
    return found


def check_graph(data: bytes, where: str, domains: Collection[str] = ()) -> list[External]:
    """Return the places of external data of the ONNX file `data`; `domains` are operator domains beyond `DOMAINS`.

    Raises VerificationError for anything that ttac does not write: unknown fields, other domains, functions, subgraphs
    of other operators than Scan, tensors whose data does not fit their shape, and constant shapes of more than
    `LARGEST_ELEMENTS`.
    """
    try:
        model = _Reader(data).message(0, len(data), "model")
        graph = _one(model, 7, {})
        tensors = [*graph.get(5, []), *(t for node in graph.get(1, []) for a in node.get(5, []) for t in a.get(5, []))]
        external = [place for tensor in tensors if (place := _check_tensor(tensor)) is not None]
        constants = _small_constants(graph)
        for node in graph.get(1, []):
            _check_node(node, constants, {*DOMAINS, *domains})
    except (IndexError, ValueError) as error:
        raise VerificationError(
            f"the graph is not a whole ONNX file of ttac: {error}", where=where, hint=HINT
        ) from error
    return external


class _Reader:
    """Protobuf fields of `data`, strictly by `MODEL`."""

    def __init__(self, data: bytes) -> None:
        self._data, self._fields = data, 0

    def message(self, at: int, end: int, kind: str) -> Message:
        """Field number -> its values, of the message in data[at:end]."""
        schema, fields, data = MODEL[kind], {}, self._data  # type: Schema, Message, bytes
        while at < end:
            tag, at = (data[at], at + 1) if data[at] < 0x80 else self._varint(at)
            number, wire = tag >> 3, tag & 7
            if tag >> 32 or number not in schema:
                raise ValueError(f"a {kind} has the unknown field {number}")
            content, many = schema[number]
            values = fields.setdefault(number, [])
            if values and not many:
                raise ValueError(f"a {kind} has the field {number} twice")
            if wire == 0 and content == INT:
                value, at = self._varint(at)
                values.append(value)
            elif wire == 2:
                length, start = (data[at], at + 1) if data[at] < 0x80 else self._varint(at)
                at = start + length
                if at > end:
                    raise ValueError("a field is longer than its message")
                self._delimited(values, content, many, start, at)
            elif wire in (1, 5) and WIRE.get(content) == wire:
                at += 8 if wire == 1 else 4
                values.append(data[at - 4 : at])
            else:
                raise ValueError(f"a {kind} has the field {number} with wire type {wire}")
        if at != end:
            raise ValueError("a message ends inside a field")
        self._count(len(fields))
        return fields

    def _delimited(self, values: list[Any], content: str, many: bool, start: int, end: int) -> None:
        """Append the message, the bytes or the packed numbers in data[start:end]."""
        if content == BYTES:
            values.append(self._data[start:end])
        elif content in MODEL:
            self._count(1)
            values.append(self.message(start, end, content))
        elif not many:
            raise ValueError("a single number is packed")
        elif content == INT:
            while start < end:
                value, start = self._varint(start)
                values.append(value)
            if start != end:
                raise ValueError("packed numbers end inside a number")
        else:
            size = 4 if content == FIXED32 else 8
            if (end - start) % size:
                raise ValueError("packed numbers end inside a number")
            values.extend(self._data[at : at + size] for at in range(start, end, size))

    def _count(self, number: int) -> None:
        self._fields += number
        if self._fields > MOST_FIELDS:
            raise ValueError(f"it has more than {MOST_FIELDS} fields")

    def _varint(self, at: int) -> tuple[int, int]:
        """The number at `at`, and the place after it."""
        value = self._data[at]
        if value < 0x80:
            return value, at + 1
        value &= 0x7F
        for count in range(1, 10):
            byte = self._data[at + count]
            value |= (byte & 0x7F) << 7 * count
            if byte < 0x80:
                if value >> 64:
                    break
                return value, at + count + 1
        raise ValueError("a number is longer than 64 bits")


def _one(message: Message, number: int, default: Any) -> Any:
    return message[number][0] if number in message else default


def _text(message: Message, number: int) -> str:
    return str(_one(message, number, b""), "utf-8")


def _check_tensor(tensor: Message) -> External | None:
    """The place of the tensor's external data, None if its data is in the graph; raises ValueError on a mismatch."""
    item = ITEM_BYTES.get(_one(tensor, 2, 0))
    name, sizes = _text(tensor, 8), tensor.get(1, [])
    if item is None or any(size >> 31 for size in sizes):
        raise ValueError(f"tensor `{name}` has the type {_one(tensor, 2, 0)} and the shape {sizes[:8]}")
    needed = math.prod(sizes) * item
    if _one(tensor, 14, 0) == EXTERNAL:
        return _external(tensor, name, needed)
    if 13 in tensor or _one(tensor, 14, 0):
        raise ValueError(f"tensor `{name}` has external data, and it is not marked as external")
    stored = len(_one(tensor, 9, b"")) if 9 in tensor else item * sum(len(tensor.get(n, [])) for n in (4, 5, 7, 10, 11))
    if stored != needed:
        raise ValueError(f"tensor `{name}` of shape {sizes[:8]} has {stored} bytes")
    return None


def _external(tensor: Message, name: str, needed: int) -> External:
    entries = {_text(entry, 1): _text(entry, 2) for entry in tensor.get(13, [])}
    if len(entries) != len(tensor.get(13, [])) or set(entries) - {"location", "offset", "length", "checksum"}:
        raise ValueError(f"tensor `{name}` describes its external data by {sorted(entries)}")
    numbers = [entries.get("offset", "0"), entries.get("length", str(needed))]
    if not all(number.isdecimal() and number.isascii() and len(number) < 19 for number in numbers):
        raise ValueError(f"tensor `{name}` has external data at {numbers}")
    offset, length = (int(number) for number in numbers)
    if length != needed or any(number in tensor for number in (4, 5, 7, 9, 10, 11)):
        raise ValueError(f"tensor `{name}` needs {needed} bytes of external data, and {length} are stated")
    return External(entries.get("location", ""), offset, length)


def _small_constants(graph: Message) -> dict[bytes, list[int]]:
    """Name -> values of the constants of int64 that can be a shape, repeats or sizes."""
    tensors = {_one(tensor, 8, b""): tensor for tensor in graph.get(5, [])}
    for node in graph.get(1, []):
        if _one(node, 4, b"") == b"Constant":
            for attribute in node.get(5, []):
                tensors.update((output, tensor) for tensor in attribute.get(5, []) for output in node.get(2, []))
    return {name: _integers(tensor) for name, tensor in tensors.items() if _one(tensor, 2, 0) == INT64}


def _integers(tensor: Message) -> list[int]:
    if math.prod(tensor.get(1, [])) > 64:
        return []
    raw = _one(tensor, 9, b"")
    if raw:
        return [int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8)]
    return [value - (value >> 63 << 64) for value in tensor.get(7, [])]


def _check_node(node: Message, constants: Mapping[bytes, list[int]], domains: Collection[str]) -> None:
    domain, kind, name = _text(node, 7), _text(node, 4), _text(node, 3)
    if domain not in domains:
        raise ValueError(f"node `{name}` is of the operator domain `{domain}`")
    for body in (body for attribute in node.get(5, []) for body in attribute.get(6, [])):
        if kind != "Scan" or domain:
            raise ValueError(f"node `{name}` ({kind}) has a subgraph")
        for inner in body.get(1, []):
            _check_node(inner, {}, domains)
    inputs = node.get(1, [])
    if kind in SHAPE_INPUT and len(inputs) > SHAPE_INPUT[kind]:
        sizes = constants.get(inputs[SHAPE_INPUT[kind]], [])
        if math.prod(size for size in sizes if size > 0) > LARGEST_ELEMENTS:
            raise ValueError(f"node `{name}` makes a tensor of {sizes[:8]}")
