"""The arrays that cells stream, each computed once and kept as a file that every worker maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttac.errors import UsageError
from ttac.evaluation import corruptions as images_of
from ttac.evaluation.cells import Cell, digest
from ttac.evaluation.dataset import Dataset, subset
from ttac.evaluation.named_data import NamedInputs, preparation_of
from ttac.evaluation.protocols import Shift
from ttac.evaluation.result_folder import ResultFolder
from ttac.evaluation.sweep import perform
from ttac.evaluation.watch import Watch
from ttac.samples.images import Preparation

CHUNK = 256
"""Number of samples that one piece of work corrupts."""

Geometry = tuple[Any, str]
"""Shape and layout of a model's samples, or its inputs."""


@dataclass(frozen=True)
class Piece:
    """The images `start` to `stop` of a file, and the corruption to apply."""

    images: Path
    shift: Shift
    start: int
    stop: int


@dataclass(frozen=True)
class ShiftFiles:
    """The files of the shifts of all cells, the file of the labels, and the number of samples in each."""

    files: dict[tuple[Geometry, Shift], Path]
    geometry: dict[Path, Geometry]
    labels: Path | None
    count: int

    def of(self, cell: Cell) -> tuple[Path, ...]:
        """Return the files of the cell's shifts, in their order."""
        return tuple(self.files[self.geometry[cell.subject.bundle], shift] for shift in cell.shifts)


class ShiftFileMaker:
    """Writes the arrays of a data set, limited to a fixed choice of `samples` samples, as files."""

    def __init__(self, folder: ResultFolder, dataset: Dataset, samples: int | None) -> None:
        self.folder, self.dataset, self.rows = folder, dataset, subset(dataset.count, samples)

    def prepare(self, cells: Sequence[Cell], jobs: int, watch: Watch) -> ShiftFiles:
        """Write the missing files of the cells, and return all; raises UsageError when samples do not fit a model."""
        how = {bundle: preparation_of(bundle) for bundle in dict.fromkeys(cell.subject.bundle for cell in cells)}
        geometry = {bundle: geometry_of(each) for bundle, each in how.items()}
        rules = {geometry[bundle]: each for bundle, each in how.items()}
        keys = dict.fromkeys((geometry[cell.subject.bundle], shift) for cell in cells for shift in cell.shifts)
        files = {(shape, shift): self._array(shift, rules[shape]) for shape, shift in keys if shift.severity is None}
        corrupted = [(shape, shift) for shape, shift in keys if shift.severity is not None]
        if corrupted:
            _refuse_named(how.values())
            clean = {shape: self._array(Shift(self.dataset.variants[0]), rules[shape]) for shape, _ in corrupted}
            files |= self._corrupted([(shape, shift, clean[shape]) for shape, shift in corrupted], jobs, watch)
        if not all(isinstance(each, NamedInputs) or each.known for each in how.values()) and any(
            map(_holds_bytes, files.values())
        ):
            watch.say("note: some models do not say how pixels are prepared; their pixels are scaled to [0, 1]")
        return ShiftFiles(files, geometry, self._labels(), len(self.rows))

    def _labels(self) -> Path | None:
        if self.dataset.labels is None:
            return None
        return self.folder.keep_array(f"labels-{self._name()}", self.dataset.labels[self.rows])

    def _array(self, shift: Shift, how: Preparation | NamedInputs) -> Path:
        """Return the file of an array of the data set in the geometry of a model, or of arrays by their names."""
        name = self._name(shift.name, *geometry_of(how))
        path = self.folder.archive(name) if isinstance(how, NamedInputs) else self.folder.array(name)
        if path.exists():
            return path
        read = self.dataset.read(shift.name, self.rows, how)
        return self.folder.keep_archive(name, read) if isinstance(read, dict) else self.folder.keep_array(name, read)

    def _corrupted(
        self, shifts: Sequence[tuple[Geometry, Shift, Path]], jobs: int, watch: Watch
    ) -> dict[tuple[Geometry, Shift], Path]:
        """Return the files of corrupted images; missing ones are computed in parallel, `CHUNK` images at a time."""
        package = images_of.version()
        names = [self._name(str(shift), clean.stem, package, images_of.SIDE) for _, shift, clean in shifts]
        missing = [
            (name, shift, clean)
            for name, (_, shift, clean) in zip(names, shifts, strict=True)
            if not self.folder.array(name).exists()
        ]
        count = len(self.rows)
        starts = range(0, count, CHUNK)
        pieces = [Piece(clean, shift, i, min(i + CHUNK, count)) for _, shift, clean in missing for i in starts]
        if pieces:
            watch.expect("corrupting", len(missing) * count)
        parts: list[dict[int, np.ndarray]] = [{} for _ in missing]
        for done in perform(corrupt_piece, pieces, jobs=jobs):
            if done.failure is not None:
                raise done.failure
            assert done.result is not None
            watch.moved(len(done.result))
            owner, place = divmod(done.number, len(starts))
            parts[owner][place] = done.result
            if len(parts[owner]) == len(starts):
                whole = np.concatenate([parts[owner].pop(i) for i in range(len(starts))])
                self.folder.keep_array(missing[owner][0], whole)
        return {(key, shift): self.folder.array(name) for name, (key, shift, _) in zip(names, shifts, strict=True)}

    def _name(self, *facts: Any) -> str:
        """Return a name that depends on everything that the array depends on."""
        rows = [len(self.rows), self.dataset.count]
        return digest({"data": self.dataset.digest, "rows": rows, "facts": [str(fact) for fact in facts]})


def _holds_bytes(path: Path) -> bool:
    return path.suffix == ".npy" and bool(np.load(path, mmap_mode="r", allow_pickle=False).dtype == np.uint8)


def corrupt_piece(piece: Piece) -> np.ndarray:
    """Return the corrupted images of the piece, uint8 [n, C, H, W]."""
    images = np.load(piece.images, mmap_mode="r", allow_pickle=False)[piece.start : piece.stop]
    assert piece.shift.severity is not None
    return images_of.corrupted(np.asarray(images), piece.shift.name, piece.shift.severity, first=piece.start)


def geometry_of(how: Preparation | NamedInputs) -> Geometry:
    """Return a key of the arrays that a rule makes."""
    return (how.inputs, "named") if isinstance(how, NamedInputs) else (how.sample, how.layout)


def _refuse_named(rules: Iterable[Preparation | NamedInputs]) -> None:
    if any(isinstance(each, NamedInputs) for each in rules):
        problem = "corruptions are made of the images of a single input"
        hint = "give shifted inputs as arrays `NAME/SHIFT`"
        raise UsageError(problem, where="`--corruptions`", hint=hint)
