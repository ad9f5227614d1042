"""The arrays that cells stream, made once each and kept as files that every worker maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttac.evaluation import corruptions as images_of
from ttac.evaluation.cells import Cell, digest
from ttac.evaluation.protocols import Shift
from ttac.evaluation.results import Folder
from ttac.evaluation.samples import Source, subset
from ttac.evaluation.sweep import perform
from ttac.runtime.bundle import read_manifest
from ttac.samples.images import Preparation, preparation

if TYPE_CHECKING:
    from ttac.evaluation.study import Watch

CHUNK = 256
"""Samples that one piece of work corrupts."""


@dataclass(frozen=True)
class Piece:
    """Some of the images of a file, to be corrupted."""

    images: Path
    shift: Shift
    start: int
    stop: int


@dataclass(frozen=True)
class Made:
    """The files: one for each shift of each cell, and one of labels."""

    files: dict[tuple[tuple[Any, ...], Shift], Path]
    geometry: dict[Path, tuple[Any, ...]]
    labels: Path | None
    count: int

    def of(self, cell: Cell) -> tuple[Path, ...]:
        """The files of the cell's shifts, in their order."""
        return tuple(self.files[self.geometry[cell.subject.bundle], shift] for shift in cell.shifts)


class Arrays:
    """Makes the arrays of a source, the first `samples` of a fixed choice of them."""

    def __init__(self, folder: Folder, source: Source, samples: int | None) -> None:
        self.folder, self.source, self.rows = folder, source, subset(source.count, samples)

    def prepare(self, cells: Sequence[Cell], jobs: int, watch: Watch) -> Made:
        """Make what the cells need and is not there yet; raises UsageError when the samples do not fit a model."""
        how = {bundle: preparation_of(bundle) for bundle in dict.fromkeys(cell.subject.bundle for cell in cells)}
        geometry = {bundle: (each.sample, each.layout) for bundle, each in how.items()}
        shapes = {geometry[bundle]: each for bundle, each in how.items()}
        wanted = dict.fromkeys((geometry[cell.subject.bundle], shift) for cell in cells for shift in cell.shifts)
        files = {(shape, shift): self._plain(shift, shapes[shape]) for shape, shift in wanted if shift.severity is None}
        corrupted = [(shape, shift) for shape, shift in wanted if shift.severity is not None]
        if corrupted:
            clean = {shape: self._plain(Shift(self.source.variants[0]), shapes[shape]) for shape, _ in corrupted}
            files |= self._corrupted([(shape, shift, clean[shape]) for shape, shift in corrupted], jobs, watch)
        if not all(each.known for each in how.values()) and any(map(_holds_bytes, files.values())):
            watch.say("note: not every model says how pixels are prepared; they are scaled to [0, 1] for those")
        return Made(files, geometry, self._labels(), len(self.rows))

    def _labels(self) -> Path | None:
        if self.source.labels is None:
            return None
        return self.folder.keep_array(f"labels-{self._name()}", self.source.labels[self.rows])

    def _plain(self, shift: Shift, how: Preparation) -> Path:
        """The file of an array as it is, in the geometry of a model."""
        name = self._name(shift.name, how.sample, how.layout)
        path = self.folder.array(name)
        return path if path.exists() else self.folder.keep_array(name, self.source.read(shift.name, self.rows, how))

    def _corrupted(
        self, wanted: Sequence[tuple[tuple[Any, ...], Shift, Path]], jobs: int, watch: Watch
    ) -> dict[tuple[tuple[Any, ...], Shift], Path]:
        """The files of corrupted images, which are made in parallel, a few hundred images at a time."""
        package = images_of.version()
        names = {
            (shape, shift): self._name(str(shift), clean.stem, package, images_of.SIDE)
            for shape, shift, clean in wanted
        }
        files = {key: self.folder.array(name) for key, name in names.items()}
        waiting = [each for each in wanted if not files[each[0], each[1]].exists()]
        count = len(self.rows)
        pieces = [
            Piece(clean, shift, start, min(start + CHUNK, count))
            for _, shift, clean in waiting
            for start in range(0, count, CHUNK)
        ]
        if pieces:
            watch.expect("corrupting", len(waiting) * count)
        each = -(-count // CHUNK)
        parts: dict[int, dict[int, np.ndarray]] = {}
        for done in perform(corrupt_piece, pieces, jobs=jobs):
            if done.failure is not None:
                raise done.failure
            assert done.made is not None
            watch.moved(len(done.made))
            owner, place = divmod(done.number, each)
            parts.setdefault(owner, {})[place] = done.made
            if len(parts[owner]) == each:
                shape, shift, _ = waiting[owner]
                whole = parts.pop(owner)
                self.folder.keep_array(names[shape, shift], np.concatenate([whole[i] for i in range(each)]))
        return files

    def _name(self, *facts: Any) -> str:
        """A name that says what the array is made of."""
        rows = [len(self.rows), self.source.count]
        return digest({"data": self.source.digest, "rows": rows, "facts": [str(fact) for fact in facts]})


def _holds_bytes(path: Path) -> bool:
    return bool(np.load(path, mmap_mode="r", allow_pickle=False).dtype == np.uint8)


def corrupt_piece(piece: Piece) -> np.ndarray:
    """The images of the piece, corrupted; uint8 [n, C, H, W]."""
    images = np.load(piece.images, mmap_mode="r", allow_pickle=False)[piece.start : piece.stop]
    assert piece.shift.severity is not None
    return images_of.corrupted(np.asarray(images), piece.shift.name, piece.shift.severity, first=piece.start)


def preparation_of(bundle: Path) -> Preparation:
    """How the model of the bundle takes samples."""
    manifest = read_manifest(bundle)
    return preparation(manifest["inputs"][0]["shape"], manifest["preprocessing"])
