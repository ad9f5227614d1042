"""Find the files of external data that a graph reads; older engines follow any path, so this check comes first.

The parser reads only the part of the protobuf wire format with external data.  Field numbers are from `onnx.proto`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ttac.errors import VerificationError

DEEPEST = 64
"""Deepest nesting of messages that the parser follows, in levels."""

FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Message -> field number -> inner message, on all paths from a model to the entries of external data."""


def external_files(path: Path) -> set[str]:
    """The locations of the graph's external data, as written; raises VerificationError if it is not a protobuf."""
    try:
        return set(_locations(memoryview(path.read_bytes()), "model", DEEPEST))
    except (IndexError, ValueError) as error:
        raise VerificationError(
            f"the graph is not a whole ONNX file: {error}", where=f"`{path}`", hint="copy the bundle again"
        ) from error


def _locations(data: memoryview, message: str, depth: int) -> Iterator[str]:
    if depth == 0:
        raise ValueError(f"messages are more than {DEEPEST} levels deep")
    if message == "entry":
        entry = {number: bytes(content).decode("utf-8") for number, content in _fields(data)}
        if entry.get(1) == "location":
            yield entry.get(2, "")
        return
    for number, content in _fields(data):
        if number in FIELDS[message]:
            yield from _locations(content, FIELDS[message][number], depth - 1)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each length-delimited field."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(data, at)
            if length > len(data) - at:
                raise ValueError("a field is longer than its message")
            yield tag >> 3, data[at : at + length]
            at += length
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
    if at > len(data):
        raise ValueError("it ends inside a field")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
