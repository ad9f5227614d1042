"""Changes of a bundle in one file, after which every reader must refuse it."""

from __future__ import annotations

import struct
from collections.abc import Callable

HEADER = 30
"""Bytes of a local header before the name."""

Edit = Callable[[bytearray], bytes]


def field(data: bytearray, at: int, form: str, value: int) -> None:
    struct.pack_into("<" + form, data, at, value)


def entry(data: bytes, number: int = 1) -> int:
    """The place of an entry of the directory, found by its signature."""
    at = struct.unpack_from("<I", data, len(data) - 6)[0]
    for _ in range(number):
        at = data.index(b"PK\x01\x02", at + 1)
    return at


def local(data: bytes, number: int = 1) -> int:
    """The place of the local header of an entry."""
    return int(struct.unpack_from("<I", data, entry(data, number) + 42)[0])


def both(entry_at: int, local_at: int, form: str, value: int) -> Edit:
    """A change of one field in an entry and its local header."""

    def edit(data: bytearray) -> bytes:
        at, header = entry(data), local(data)
        field(data, at + entry_at, form, value)
        field(data, header + local_at, form, value)
        return bytes(data)

    return edit


def in_entry(offset: int, form: str, value: int) -> Edit:
    def edit(data: bytearray) -> bytes:
        field(data, entry(data) + offset, form, value)
        return bytes(data)

    return edit


def in_end(offset: int, form: str, value: int) -> Edit:
    def edit(data: bytearray) -> bytes:
        field(data, len(data) - 22 + offset, form, value)
        return bytes(data)

    return edit


def renamed(new: bytes) -> Edit:
    """The second member under another name of the same length."""

    def edit(data: bytearray) -> bytes:
        at, header = entry(data), local(data)
        length = struct.unpack_from("<H", data, at + 28)[0]
        name = new.ljust(length, b"_")[:length]
        data[at + 46 : at + 46 + length] = data[header + HEADER : header + HEADER + length] = name
        return bytes(data)

    return edit


def overlap(data: bytearray) -> bytes:
    field(data, entry(data, 2) + 42, "I", local(data, 1))
    return bytes(data)


def wrong_local_name(data: bytearray) -> bytes:
    data[local(data) + HEADER] ^= 1
    return bytes(data)


def wrong_local_size(data: bytearray) -> bytes:
    field(data, local(data) + 22, "I", 1)
    return bytes(data)


def damaged_manifest(data: bytearray) -> bytes:
    data[data.index(b'"format"') + 1] ^= 1
    return bytes(data)


EDITS: dict[str, Edit] = {
    "compressed": both(10, 8, "H", 8),
    "two-sizes": in_entry(20, "I", 1),
    "encrypted": both(8, 6, "H", 1),
    "streamed": both(8, 6, "H", 8),
    "symbolic-link": in_entry(38, "I", 0o120777 << 16),
    "folder": in_entry(38, "I", 0o040755 << 16),
    "absolute-path": renamed(b"/etc/passwd"),
    "parent": renamed(b"../a"),
    "backslash": renamed(b"..\\a"),
    "control-character": renamed(b"a\x00b"),
    "not-utf-8": renamed(b"\xff\xfe"),
    "overlap": overlap,
    "header-of-another-name": wrong_local_name,
    "header-of-another-size": wrong_local_size,
    "bytes-in-front": lambda data: bytes(data[:43]) + bytes(data),
    "bytes-behind": lambda data: bytes(data) + b"x",
    "comment": in_end(20, "H", 1),
    "other-count": in_end(10, "H", 1),
    "no-members": in_end(8, "I", 0),
    "too-many-members": in_end(8, "I", 9 << 16 | 9),
    "directory-elsewhere": in_end(16, "I", 0),
    "cut": lambda data: bytes(data[:-40]),
    "only-a-head": lambda data: bytes(data[:60]),
    "manifest-with-another-content": damaged_manifest,
}
"""Name -> change of a valid archive, after which it has no reading, or two."""
