"""A bundle in one file: a zip without compression, whose members are mapped where they lie.

Readers of zips disagree about odd files.  So an archive is refused unless it has one reading: the members follow each
other from the first byte to the directory, each local header repeats its entry of the directory, and nothing is
compressed, encrypted or linked.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ttac.errors import UsageError, VerificationError
from ttac.runtime.json_values import HINT, MANIFEST, is_plain_name
from ttac.runtime.whole_file import new_file

LOCAL, ENTRY, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
LOCAL_HEADER, ENTRY_HEADER, END_RECORD = (struct.Struct(form) for form in ("<4s5H3I2H", "<4s6H3I5H2I", "<4s4H2IH"))
"""Fixed parts of the records, as the ZIP specification (APPNOTE 6.3) lists them, little-endian."""

UTF8 = 0x800
"""The flag of a name in UTF-8; every other flag changes the reading of a member."""
MOST_MEMBERS = 1000
LARGEST = 2**32 - 1
"""Most bytes of an archive; larger ones need the 64-bit records, which few small readers know."""
ALIGNMENT = 64
"""Bytes: each member begins at a multiple, so that its tensors can be read in place."""
PADDING = 0xD935
"""Number of the extra field that moves a member, as Android's zipalign writes it."""
DATE = 0x21
"""1 January 1980, the first date of the format."""
UNIX_FILE = (stat.S_IFREG | 0o644) << 16


@dataclass(frozen=True)
class Span:
    """The bytes of a member: first byte in the file, and number of bytes."""

    start: int
    size: int


@dataclass(frozen=True)
class Archive:
    """A file of members; `identity` tells the file from a later one at the same path."""

    path: Path
    identity: tuple[int, ...]
    members: Mapping[str, Span]
    manifest: bytes


def identity_of(status: os.stat_result) -> tuple[int, ...]:
    """Return device, inode, size and time of the last write."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def is_archive(path: Path) -> bool:
    """Whether `path` is a zip that begins with a manifest, valid otherwise or not."""
    try:
        with path.open("rb") as file:
            head = file.read(LOCAL_HEADER.size + len(MANIFEST))
    except OSError:
        return False
    return head.startswith(LOCAL) and head[LOCAL_HEADER.size :] == MANIFEST.encode()


def read_archive(path: Path, largest: int) -> Archive:
    """Return the members of the archive at `path`, and its manifest of at most `largest` bytes.

    Raises VerificationError for an archive with more than one reading, and OSError for a file that cannot be read.
    """
    with path.open("rb") as file:
        identity = identity_of(os.fstat(file.fileno()))
        try:
            entries = _entries(file, identity[2])
            members = _members(file, entries)
            manifest = _manifest(file, members, entries, largest)
        except (ValueError, struct.error) as error:
            problem = f"the bundle's file is not a plain zip: {error}"
            raise VerificationError(problem, where=f"`{path}`", hint=HINT) from error
    return Archive(path, identity, members, manifest)


@dataclass(frozen=True)
class _Entry:
    """An entry of the directory; `common` are the fields that the local header repeats."""

    name: bytes
    common: tuple[int, ...]
    header: int

    @property
    def size(self) -> int:
        return self.common[-1]


def _entries(file: BinaryIO, size: int) -> list[_Entry]:
    """The directory, which ends where the last record of the file begins."""
    if size > LARGEST or size < END_RECORD.size:
        raise ValueError(f"it has {size} bytes")
    file.seek(size - END_RECORD.size)
    magic, disk, first, here, count, length, start, comment = END_RECORD.unpack(file.read(END_RECORD.size))
    if magic != END or disk or first or comment or here != count or not 0 < count <= MOST_MEMBERS:
        raise ValueError("it does not end with the record of a zip in one part without a comment")
    if start + length + END_RECORD.size != size:
        raise ValueError("its directory does not end where the last record begins")
    file.seek(start)
    data, at, entries = file.read(length), 0, list[_Entry]()
    for _ in range(count):
        fields = ENTRY_HEADER.unpack_from(data, at)
        magic, _, _, flags, method, _, _, crc, packed, plain, *lengths, disk, _, mode, header = fields
        at += ENTRY_HEADER.size
        name = data[at : at + lengths[0]]
        at += sum(lengths)
        if magic != ENTRY or disk or at > length:
            raise ValueError("its directory is damaged")
        _refuse_odd(name, flags, method, packed, plain, mode >> 16)
        entries.append(_Entry(name=name, common=(flags, method, crc, packed, plain), header=header))
    if at != length:
        raise ValueError("its directory has more bytes than entries")
    entries.append(_Entry(name=b"", common=(0,), header=start))
    return entries


def _refuse_odd(name: bytes, flags: int, method: int, packed: int, plain: int, mode: int) -> None:
    """Raise ValueError for a member that is not the plain bytes of an ordinary file."""
    if not is_plain_name(name.decode("utf-8", "replace").replace("\ufffd", "/")):
        raise ValueError(f"the name {name[:80]!r} is no plain file name")
    text = name.decode()
    if flags & 1:
        raise ValueError(f"`{text}` is encrypted")
    if flags & ~UTF8:
        raise ValueError(f"`{text}` has the flags {flags:#x}")
    if method or packed != plain:
        raise ValueError(f"`{text}` is compressed")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise ValueError(f"`{text}` is a link or another special file")


def _members(file: BinaryIO, entries: Sequence[_Entry]) -> dict[str, Span]:
    """Name -> bytes of the member; the last entry is the directory itself."""
    members: dict[str, Span] = {}
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header):
        if entry.header != end:
            raise ValueError("its members overlap, or bytes between them belong to none")
        if not entry.name:
            return members
        file.seek(entry.header)
        magic, _, flags, method, _, _, crc, packed, plain, *lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        name = file.read(lengths[0])
        if magic != LOCAL or name != entry.name or (flags, method, crc, packed, plain) != entry.common:
            raise ValueError(f"the header of `{entry.name.decode()}` differs from the directory")
        if entry.name.decode() in members:
            raise ValueError(f"`{entry.name.decode()}` is there twice")
        start = entry.header + LOCAL_HEADER.size + sum(lengths)
        members[entry.name.decode()] = Span(start, entry.size)
        end = start + entry.size
    raise ValueError("its members lie behind the directory")


def _manifest(file: BinaryIO, members: Mapping[str, Span], entries: Sequence[_Entry], largest: int) -> bytes:
    span = members.get(MANIFEST)
    if span is None or span.size > largest:
        raise ValueError(f"it has no `{MANIFEST}` of at most {largest} bytes")
    file.seek(span.start)
    data = file.read(span.size)
    if zlib.crc32(data) != next(entry.common[2] for entry in entries if entry.name == MANIFEST.encode()):
        raise ValueError(f"`{MANIFEST}` does not have its checksum")
    return data


def write_archive(path: Path, files: Mapping[str, bytes | memoryview]) -> None:
    """Write the files to the archive `path`, new and whole; equal files give equal bytes.

    Raises UsageError if the path cannot be written, or the archive would be larger than 4 GiB.
    """
    if sum(len(data) for data in files.values()) + 1024 * len(files) > LARGEST:
        hint = "keep the folder, which has no limit"
        raise UsageError("a bundle in one file holds at most 4 GiB", where=f"`{path}`", hint=hint)
    directory, at = b"", 0
    with new_file(path) as out:
        for name, data in files.items():
            encoded = name.encode()
            common = (0 if name.isascii() else UTF8, 0, 0, DATE, zlib.crc32(data), len(data), len(data), len(encoded))
            padding = _padding(at + LOCAL_HEADER.size + len(encoded))
            out.write(LOCAL_HEADER.pack(LOCAL, 10, *common, len(padding)) + encoded + padding)
            out.write(data)
            directory += ENTRY_HEADER.pack(ENTRY, 3 << 8 | 20, 10, *common, 0, 0, 0, 0, UNIX_FILE, at) + encoded
            at += LOCAL_HEADER.size + len(encoded) + len(padding) + len(data)
        count = len(files)
        out.write(directory + END_RECORD.pack(END, 0, 0, count, count, len(directory), at, 0))


def _padding(at: int) -> bytes:
    """The extra field that moves the data behind it to the next multiple of `ALIGNMENT`; empty if it is there."""
    count = -at % ALIGNMENT
    if count == 0:
        return b""
    count += ALIGNMENT if count < 6 else 0
    return struct.pack("<3H", PADDING, count - 4, ALIGNMENT) + bytes(count - 6)
