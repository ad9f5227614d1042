"""A cell: one method on one model over one stream.  Each cell runs once, and its result is kept.

Cells are independent of each other.  Where a protocol carries state from shift to shift, the whole stream is one cell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttac.evaluation.answers import ERROR, Reading, reading_of
from ttac.evaluation.metrics import Predictions, calibration_bins, packed
from ttac.evaluation.named_data import NamedInputs, gathered_feeds, preparation_of
from ttac.evaluation.protocols import Batch, Order, Shift, schedule
from ttac.runtime.records import COUNTED
from ttac.samples.images import Preparation

if TYPE_CHECKING:
    from ttac.runtime.adapter import Adapter

WINDOWS = 400
"""Approximate number of windows in the trace of one cell."""
FEWEST = 8
"""Least number of windows for each shift."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with a method, as a bundle that exists or that `evaluate` compiles.

    Attributes:
        model, method: their names in the results.
        batch: number of samples of a step.
        identity: everything that the bundle depends on, in JSON values.
        bundle: folder of the bundle.
    """

    model: str
    method: str
    batch: int
    identity: Mapping[str, Any]
    bundle: Path


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One stream for one subject.

    Attributes:
        shifts: in the order of the stream, for protocols with an order of shifts.
        data: digest and number of the samples, and the package of the corruptions if there are any.
    """

    subject: Subject
    protocol: str
    shifts: tuple[Shift, ...]
    order: Order
    data: Mapping[str, Any]

    def described(self) -> dict[str, Any]:
        """Return everything that the result depends on, in JSON values."""
        return {
            "subject": dict(self.subject.identity),
            "batch": self.subject.batch,
            "protocol": self.protocol,
            "shifts": [[shift.name, shift.severity] for shift in self.shifts],
            "order": self.order.kind,
            "concentration": self.order.concentration if self.order.kind == "dirichlet" else None,
            "seed": self.order.seed,
            "data": dict(self.data),
        }

    @cached_property
    def key(self) -> str:
        """Name of the result; two cells have the same key exactly if they have the same description."""
        return digest(self.described())


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell with the files that a worker needs for it.

    Attributes:
        arrays: one `.npy` file for each shift of the cell.
        count: number of samples.
        labels: an `.npy` file of labels, or None.
        threads: threads of the engine; 0 leaves the number to the engine.
    """

    cell: Cell
    arrays: tuple[Path, ...]
    count: int
    labels: Path | None
    threads: int


@dataclass(kw_only=True)
class Course:
    """The record of every batch of a running cell, whose outputs `reading` reads."""

    reading: Reading
    batches: list[Batch] = field(default_factory=list)
    predicted: list[Predictions] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    stats: list[dict[str, float]] = field(default_factory=list)
    rejected: int = 0
    _rejected: int = 0

    def take(self, batch: Batch, predicted: Predictions, stats: Mapping[str, Any]) -> None:
        """Record a step; `stats` are the adapter's values after the step."""
        before = 0 if batch.reset else self._rejected
        self.rejected += int(stats["rejected"]) - before
        self._rejected = int(stats["rejected"])
        self.batches.append(batch)
        self.predicted.append(predicted)
        self.seconds.append(stats["milliseconds"] / 1e3)
        self.stats.append({name: float(value) for name, value in stats.items() if _is_scalar(name, value)})


def digest(description: Mapping[str, Any]) -> str:
    """Return a short name, 24 hexadecimal digits, for a description in JSON values."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def run_cell(job: Job, moved: Callable[[int], object] = lambda samples: None) -> dict[str, Any]:
    """Run the cell and return its result in JSON values; `moved` gets the number of samples after each batch.

    Raises the errors of loading and running a bundle, and UnsupportedError for an output whose reading is unclear.
    """
    adapter = _adapter(job.cell.subject.bundle, job.threads)
    adapter.reset()
    manifest = adapter.bundle.manifest
    reading = reading_of(manifest)
    how = preparation_of(job.cell.subject.bundle)
    arrays = [loaded(path) for path in job.arrays]
    labels = None if job.labels is None else np.load(job.labels, allow_pickle=False)
    course = Course(reading=reading)
    for batch in schedule(
        *(job.cell.protocol, job.cell.shifts, job.count, labels, job.cell.order),
        batch=job.cell.subject.batch,
        smallest=adapter.smallest_batch,
    ):
        if batch.reset:
            adapter.reset()
        feeds = gathered(arrays, batch, how)
        course.take(batch, reading.read(adapter.step(feeds), feeds), adapter.stats)
        moved(len(batch.rows))
    return {
        "key": job.cell.key,
        "cell": job.cell.described(),
        "figure": reading.figure,
        "parts": [_part(job.cell.shifts, number, course, labels) for number in range(len(arrays))],
        "trace": _trace(job.cell, course, labels),
        "rejected": course.rejected,
        "threads": job.threads,
        "memory": dict(manifest["memory"]),
    }


def loaded(path: Path) -> Any:
    """Return the array of an `.npy` file, mapped, or the arrays of an `.npz` file by their names."""
    file = np.load(path, mmap_mode="r", allow_pickle=False)
    return {name: file[name] for name in file.files} if path.suffix == ".npz" else file


def gathered(arrays: list[Any], batch: Batch, how: Preparation | NamedInputs) -> Any:
    """Return the samples of a batch as the model's input, float32 [n, *sample], or as inputs by their names."""
    if isinstance(how, NamedInputs):
        return gathered_feeds(arrays, batch.shifts, batch.rows, how.axes)
    samples = np.stack([arrays[shift][row] for shift, row in zip(batch.shifts, batch.rows, strict=True)])
    return how.prepare(samples) if samples.dtype == np.uint8 else samples


def _is_scalar(name: str, value: Any) -> bool:
    return name not in COUNTED and isinstance(value, (int, float)) and bool(np.isfinite(value))


def _part(shifts: tuple[Shift, ...], number: int, course: Course, labels: np.ndarray | None) -> dict[str, Any]:
    """Return the figures of one shift of the stream."""
    masks = [batch.shifts == number for batch in course.batches]
    rows = np.concatenate([batch.rows[mask] for batch, mask in zip(course.batches, masks, strict=True)])
    answers, confidence, entropy = (
        np.concatenate([getattr(each, name)[mask] for each, mask in zip(course.predicted, masks, strict=True)])
        for name in ("answers", "confidence", "entropy")
    )
    seconds = [time * mask.mean() for time, mask in zip(course.seconds, masks, strict=True)]
    codes = course.reading.codes(answers)
    in_file_order = np.empty_like(codes)
    in_file_order[rows] = codes
    wrong, counted = (None, 0) if labels is None else course.reading.wrong(answers, labels[rows])
    hits = None
    if labels is not None and course.reading.figure == ERROR and answers.ndim == 1 == labels.ndim:
        hits = answers == labels[rows]
    return {
        "shift": shifts[number].name,
        "severity": shifts[number].severity,
        "samples": len(rows),
        "wrong": wrong,
        "counted": counted,
        "entropy": float(entropy.mean()),
        "seconds": float(sum(seconds)),
        "bins": None if hits is None else calibration_bins(confidence, hits),
        "predictions": packed(in_file_order),
    }


def _trace(cell: Cell, course: Course, labels: np.ndarray | None) -> list[dict[str, Any]]:
    """Return the trace of the stream: windows of consecutive batches, none across the border of two shifts."""
    shift_of = [-1 if cell.protocol == "mixed" else int(batch.shifts[0]) for batch in course.batches]
    windows: list[dict[str, Any]] = []
    for number in sorted(set(shift_of)):
        steps = [step for step, shift in enumerate(shift_of) if shift == number]
        points = max(FEWEST, WINDOWS // len(set(shift_of)) if course.reading.figure == ERROR else 0)
        parts = np.array_split(steps, min(points, len(steps)))
        windows.extend(_window(course, part.tolist(), number, labels) for part in parts)
    return windows


def _window(course: Course, steps: list[int], shift: int, labels: np.ndarray | None) -> dict[str, Any]:
    predicted = [course.predicted[step] for step in steps]
    entropy = np.concatenate([each.entropy for each in predicted])
    rows = np.concatenate([course.batches[step].rows for step in steps])
    wrong, counted = None, 0
    if labels is not None:
        wrong, counted = course.reading.wrong(np.concatenate([each.answers for each in predicted]), labels[rows])
    names = sorted({name for step in steps for name in course.stats[step]})
    stats = {name: [course.stats[step][name] for step in steps if name in course.stats[step]] for name in names}
    return {
        "shift": shift,
        "samples": len(rows),
        "wrong": wrong,
        "counted": counted,
        "entropy": float(entropy.mean()),
        "stats": {name: float(np.mean(values)) for name, values in stats.items()},
    }


@lru_cache(maxsize=1)
def _adapter(bundle: Path, threads: int) -> Adapter:
    """Return the adapter of a bundle.

    The cache holds one adapter: cells of the same bundle follow each other, and a load takes longer than a short cell.
    """
    from ttac.runtime import load

    return load(bundle, threads=threads or None)
