"""A graph inside a bundle of one file: its bytes, which point into the bundle's file for their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LOCATION = 14
"""Number of the field that says where the data of a tensor lies."""
EXTERNAL = b"\x70\x01"
"""This field of a tensor with external data."""


@dataclass(frozen=True)
class PackedGraph:
    """A graph in a bundle of one file.

    Attributes:
        bundle: the file of the bundle.
        name: the member's name.
        data: the member's bytes.
        weights: first byte of the weights in the bundle's file.
    """

    bundle: Path
    name: str
    data: bytes
    weights: int

    @property
    def path(self) -> Path:
        """The place of the graph in messages and in the names of profiles."""
        return self.bundle / self.name

    def located(self, location: str) -> bytes:
        """Return the graph with its external data in the bundle's file, which the engine finds as `location`.

        Raises ValueError if the graph is damaged.
        """

        def moved(entries: Entries) -> bytes:
            entries[b"offset"] = str(_offset(entries) + self.weights).encode()
            entries[b"location"] = location.encode()
            texts = [_field(13, _field(1, key) + _field(2, text)) for key, text in sorted(entries.items())]
            return EXTERNAL + b"".join(texts)

        return self._with_data(moved)

    def inlined(self) -> bytes:
        """Return the graph with copies of its external data; raises ValueError if the graph is damaged."""

        def copied(entries: Entries) -> bytes:
            file.seek(_offset(entries) + self.weights)
            return _field(9, file.read(int(entries[b"length"])))

        with self.bundle.open("rb") as file:
            return self._with_data(copied)

    def _with_data(self, data: Callable[[Entries], bytes]) -> bytes:
        """The graph, where the fields `data(entries)` replace the description of external data."""

        def tensor(body: bytes) -> bytes:
            return _with_data(body, data)

        def node(body: bytes) -> bytes:
            return _edited(body, {5: lambda attribute: _edited(attribute, {5: tensor})})

        try:
            return _edited(self.data, {7: lambda graph: _edited(graph, {1: node, 5: tensor})})
        except (IndexError, KeyError) as error:
            raise ValueError("the graph is damaged") from error


Field = tuple[int, bytes, bytes]
"""Number of a protobuf field, all its bytes, and the content of a field with a length."""
Entries = dict[bytes, bytes]
"""Offset and length of external data, in decimal digits."""


def _offset(entries: Entries) -> int:
    return int(entries.get(b"offset", b"0"))


def _with_data(tensor: bytes, data: Callable[[Entries], bytes]) -> bytes:
    """The tensor with other fields for its external data; unchanged without such data."""
    fields = list(_fields(tensor))
    texts = [[content for _, _, content in _fields(entry)] for number, _, entry in fields if number == 13]
    if not texts:
        return tensor
    kept = b"".join(whole for number, whole, _ in fields if number not in (13, LOCATION))
    return kept + data({key: text for key, text in texts if key in (b"offset", b"length")})


def _edited(message: bytes, changes: Mapping[int, Callable[[bytes], bytes]]) -> bytes:
    """The message with the content of some fields changed, by field number."""
    return b"".join(
        _field(number, changes[number](content)) if number in changes else whole
        for number, whole, content in _fields(message)
    )


def _fields(message: bytes) -> Iterator[Field]:
    """The fields of a message, in their order."""
    at = 0
    while at < len(message):
        start, content = at, b""
        tag, at = _number(message, at)
        if tag & 7 == 2:
            length, at = _number(message, at)
            content = message[at : at + length]
            at += length
        else:
            at = _number(message, at)[1] if tag & 7 == 0 else at + (8 if tag & 7 == 1 else 4)
        yield tag >> 3, message[start:at], content


def _field(number: int, content: bytes) -> bytes:
    """A field with a length."""
    return _digits(number << 3 | 2) + _digits(len(content)) + content


def _number(message: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, least significant seven bits first, and the place after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _digits(value: int) -> bytes:
    """The bytes of a number."""
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
