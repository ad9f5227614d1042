"""The hash check of a bundle: each listed file lies inside the bundle and has the SHA-256 of the manifest."""

from __future__ import annotations

import hashlib
import os
import stat
import weakref
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from ttac.errors import VerificationError
from ttac.runtime.archive import Archive, Span, identity_of
from ttac.runtime.json_values import HINT, is_plain_name
from ttac.runtime.packed_graph import PackedGraph
from ttac.runtime.records import WEIGHTS

PRIVATE_BYTES = 4 * 2**20
"""Most bytes of a file that the runtime copies into private memory; a larger file is mapped."""

DESCRIPTORS = "/proc/self/fd"
"""Folder in which Linux shows the open descriptors of a process."""


class BundleFiles:
    """The listed files of a bundle, each opened once and hashed while it is read.

    The engine opens graphs and weights by their paths.  On Linux, these paths lead through a descriptor of the folder:
    the engine never meets the graph of one version and the weights of another, where a read behind the end of the
    weights would end the process.  `check_paths` proves afterwards that the paths lead to the hashed files.  The engine
    maps the weights too, so `check_unchanged` looks for writes to mapped files.

    Args:
        folder: the bundle: a folder, or the file of `archive`.
        digests: file name -> SHA-256.
        archive: the members of a bundle in one file; None for a folder.

    Raises VerificationError if a file is missing, leads out of the bundle, or has another hash.
    """

    def __init__(self, folder: Path, digests: Mapping[str, str], archive: Archive | None = None) -> None:
        self._folder, self._archive = folder, archive
        self._identities: dict[str, tuple[int, ...]] = {}
        self._content: dict[str, np.ndarray] = {}
        self._mapped: dict[str, int] = {}  # name -> descriptor
        weakref.finalize(self, _close, self._mapped)
        self._steady = folder if archive else self._held(folder)
        for name, digest in digests.items():
            self._read(name, digest)

    def content(self, name: str) -> np.ndarray:
        """The bytes of a file: uint8 [size]."""
        return self._content[name]

    def graph(self, name: str) -> Path | PackedGraph:
        """The graph in the file `name`, as `ttac.runtime.engine` takes it."""
        if self._archive is None:
            return self._steady / name
        weights = self._archive.members.get(WEIGHTS)
        return PackedGraph(self._folder, name, self.content(name).tobytes(), weights.start if weights else 0)

    def keep_only(self, names: Collection[str]) -> None:
        """Forget the bytes of all other files, and watch the files among `names` that are mapped."""
        self._content = {name: content for name, content in self._content.items() if name in names}
        for name in set(self._mapped) - set(names):
            os.close(self._mapped.pop(name))

    def check_paths(self, names: Iterable[str]) -> None:
        """Raise VerificationError if the path of a file leads to another file than the hashed one."""
        for name in names:
            try:
                path = self._place(name) if self._archive else self._steady / name
                same = identity_of(os.stat(path)) == self._identities[name]
            except OSError:
                same = False
            if not same:
                self._refuse(name, "a file of the bundle was replaced while the engine opened it")

    def check_unchanged(self) -> None:
        """Raise VerificationError if a mapped file was cut or written to; one system call for each file."""
        for name, handle in self._mapped.items():
            if identity_of(os.fstat(handle)) != self._identities[name]:
                self._refuse(name, "the file changed while the bundle was in use")

    def _held(self, folder: Path) -> Path:
        """The folder, through a descriptor where the system has a path for it; the descriptor lives as long as this."""
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (AttributeError, OSError):  # Windows has neither
            return folder
        weakref.finalize(self, os.close, handle)
        steady = Path(DESCRIPTORS, str(handle))
        return steady if steady.is_dir() else folder

    def _place(self, name: str) -> Path:
        """The path of the file that holds `name`."""
        return self._archive.path if self._archive else self._folder / name

    def _read(self, name: str, digest: str) -> None:
        path = self._place(name) if self._archive else inside(self._folder, name)
        try:
            with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise OSError("not a file")
                content, actual = _hashed(file, self._span(name, status))
                if name == WEIGHTS or isinstance(content, np.memmap):
                    self._mapped[name] = os.dup(file.fileno())
        except (OSError, ValueError) as error:
            raise VerificationError("a file of the bundle is missing", where=f"`{path}`", hint=HINT) from error
        if actual != digest:
            self._refuse(name, "a file of the bundle is not the one the manifest was written for")
        self._identities[name], self._content[name] = identity_of(status), content

    def _span(self, name: str, status: os.stat_result) -> Span:
        """The bytes of `name` in the opened file; raises VerificationError if the archive lacks it, or was replaced."""
        if self._archive is None:
            return Span(0, status.st_size)
        if identity_of(status) != self._archive.identity:
            self._refuse(name, "the bundle was replaced while it was opened")
        if name not in self._archive.members:
            raise OSError("no such member")
        return self._archive.members[name]

    def _refuse(self, name: str, problem: str) -> NoReturn:
        raise VerificationError(problem, where=f"`{self._folder / name}`", hint=f"load the bundle again, or {HINT}")


def _hashed(file: BinaryIO, span: Span) -> tuple[np.ndarray, str]:
    """Content and SHA-256 of the span: private bytes, or a map of a span above `PRIVATE_BYTES`.

    Blocks are read for the hash of a large span, so that no page of the map is touched.
    """
    file.seek(span.start)
    if span.size <= PRIVATE_BYTES:
        data = file.read(span.size)
        return np.frombuffer(data, np.uint8), hashlib.sha256(data).hexdigest()
    digest = _digest(file, span.size)
    return np.memmap(file, np.uint8, "r", span.start, (span.size,)), digest


def _close(handles: dict[str, int]) -> None:
    while handles:
        os.close(handles.popitem()[1])


def named(path: Path) -> Path:
    """The path for a message: the file itself where `path` leads through a descriptor."""
    return Path(os.path.realpath(path)) if str(path).startswith(DESCRIPTORS) else path


def inside(folder: Path, name: str) -> Path:
    """The file `name` of the folder; raises VerificationError if the name or a link leads out of it or in a circle."""
    path = folder / name
    try:
        leaves = not is_plain_name(name) or _target(path).parent != folder.resolve()
    except (OSError, RuntimeError) as error:
        hint = "copy the bundle again without links"
        raise VerificationError(
            f"`{name}` is a link that cannot be followed", where=f"`{folder}`", hint=hint
        ) from error
    if leaves:
        raise VerificationError(f"`{name}` leads out of the bundle's folder", where=f"`{folder}`", hint=HINT)
    return path


def _target(path: Path) -> Path:
    """Return the path behind all links; raises OSError, or RuntimeError before Python 3.13, for links in a circle."""
    try:
        return path.resolve(strict=True)
    except FileNotFoundError:
        return path.resolve()


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in lower-case hexadecimal."""
    with path.open("rb") as file:
        return _digest(file, os.fstat(file.fileno()).st_size)


def _digest(file: BinaryIO, size: int) -> str:
    """SHA-256 of the next `size` bytes."""
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()
