"""A stream of samples through an adapter, batch by batch, and the figures of the run.

Imports the standard library, numpy and neighbours of this folder only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ttac.runtime.events import ADAPTED, RESETS, ROW
from ttac.runtime.records import HeadSpec, TensorSpec
from ttac.samples.images import Stream, division
from ttac.samples.predictions import CLASSES, Tally, fit_labels, samples_first

ESTIMATED = "estimated_error"
"""Name of the estimate of the error in the stats."""


class Stepper(Protocol):
    """The part of `ttac.Adapter` that a stream needs."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """Outputs of the model."""

    @property
    def stats(self) -> Mapping[str, Any]:
        """Counters and scalars since the bundle was loaded or reset."""

    def step(self, x: Any) -> Any:
        """Predict and adapt: an array, or a dict (name to array) for several outputs."""

    def predict(self, x: Any) -> Any:
        """Predict with the adapted state."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a stream.

    Attributes:
        outputs: name -> array of all samples in order; None where the outputs were not kept.
        samples: number of samples.
        seconds: time inside the adapter; the time to read the samples does not count.
        rejected: number of steps whose new state was not finite, so that the adapter kept the old state.
        entropy: mean entropy of the predictions in nats, 0 when all are certain; None where the outputs have no head.
        not_finite: number of samples with NaN or infinite values; entropy and error leave them out.
        error: fraction of wrong predictions; None without labels.
        held, guard_resets: batches that the guard held, and its resets of the state; None without a guard.
        estimated_error: mean over the steps of the estimate without labels; None without the setting `estimate`.
    """

    outputs: Mapping[str, np.ndarray] | None
    samples: int
    seconds: float
    rejected: int
    not_finite: int = 0
    entropy: float | None = None
    error: float | None = None
    held: int | None = None
    guard_resets: int | None = None
    estimated_error: float | None = None

    def summary(self) -> dict[str, Any]:
        """The numbers by name, without those that are None."""
        numbers: dict[str, Any] = {
            "samples": self.samples,
            "seconds": round(self.seconds, 4),
            "ms_per_sample": round(1000 * self.seconds / self.samples, 4),
            "mean_entropy": _rounded(self.entropy),
            "rejected_steps": self.rejected,
            "held_batches": self.held,
            "guard_resets": self.guard_resets,
            "not_finite": self.not_finite or None,
            "error": _rounded(self.error),
            "estimated_error": _rounded(self.estimated_error),
        }
        return {name: number for name, number in numbers.items() if number is not None}


def run_stream(
    adapter: Stepper,
    stream: Stream,
    *,
    batch: int,
    smallest: int = 1,
    adapt: bool = True,
    head: HeadSpec | None = CLASSES,
    keep: bool = True,
    moved: Callable[[int], object] = lambda samples: None,
) -> Outcome:
    """Run all samples in order, `batch` at a time and never fewer than `smallest`, and return the outcome.

    `adapt` chooses between `step` and `predict`.  `head` is the reading of one output, None where it is not read.
    The outcome holds all outputs if `keep`.  `moved` gets the number of samples after each batch.
    Raises UsageError for labels that do not fit the predictions.
    """
    before, dropped = _counter(adapter, "rejected"), _counter(adapter, "not_finite")
    axes = {spec.name: spec.batch_axis for spec in adapter.outputs}
    reading = _Reading.of(head, axes) if head is not None else None
    parts, reports, seconds, done = list[dict[str, np.ndarray]](), _Reports(), 0.0, 0
    for x, count in zip(stream.batches(batch, smallest), division(stream.count, batch, smallest), strict=True):
        start = time.perf_counter()
        outputs = named(adapter.step(x) if adapt else adapter.predict(x), adapter.outputs)
        seconds += time.perf_counter() - start
        reports.add(adapter.stats if adapt else {})
        if reading is not None:
            reading.add(outputs, stream, done, x)
        parts += [outputs] if keep else []
        done += count
        moved(count)
    return Outcome(
        outputs=_joined(parts, axes) if keep else None,
        samples=done,
        seconds=seconds,
        rejected=_counter(adapter, "rejected") - before,
        not_finite=_counter(adapter, "not_finite") - dropped,
        **(reading.figures if reading else {}),
        **reports.figures,
    )


@dataclass
class _Reports:
    """Held batches, resets and estimated errors of a stream; None or empty until the stats report them."""

    held: int | None = None
    resets: int | None = None
    total: float | None = None
    estimates: list[float] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, Any]:
        """Fields of the outcome."""
        estimated = sum(self.estimates) / len(self.estimates) if self.estimates else None
        return {"held": self.held, "guard_resets": self.resets, "estimated_error": estimated}

    def add(self, stats: Mapping[str, Any]) -> None:
        """Count the last step by its stats, unless it only filled a window: its reports are those of an earlier step.

        A saved state also brings the counters of earlier streams.
        """
        if not stats.get(ADAPTED, 1):
            return
        self.estimates += [float(stats[ESTIMATED])] if ESTIMATED in stats else []
        if ROW not in stats:
            return
        total = float(stats[RESETS])
        grown = self.total is not None and total > self.total
        self.held, self.resets, self.total = (self.held or 0) + (stats[ROW] > 0), (self.resets or 0) + grown, total


@dataclass(frozen=True)
class _Reading:
    """Predictions of one output, counted with the samples moved from `axis` to the first axis."""

    tally: Tally
    axis: int

    @classmethod
    def of(cls, head: HeadSpec, axes: Mapping[str, int | None]) -> _Reading:
        """The reading of the output of `head`; `axes` has the axis with the samples of each output."""
        axis = axes.get(head.output) or 0
        return cls(Tally(head=samples_first(head, axis)), axis)

    @property
    def figures(self) -> dict[str, Any]:
        """Fields of the outcome."""
        return {"entropy": self.tally.mean_entropy, "error": self.tally.error}

    def add(self, outputs: Mapping[str, np.ndarray], stream: Stream, start: int, x: Any) -> None:
        """Count the outputs of the samples `x` that begin at `start`."""
        name = self.tally.head.output
        array = np.moveaxis(outputs[name if name in outputs else next(iter(outputs))], self.axis, 0)
        labels = _labels(stream, start, array, self.tally.head)
        finite = np.isfinite(array).reshape(len(array), -1).any(axis=1)
        mask = self.tally.head.mask
        feeds = {mask: x[mask][finite]} if mask else None
        self.tally.add(array[finite], None if labels is None else labels[finite], feeds)


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 6)


def named(outputs: Any, specs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """Return the outputs of a step, name to array; a model with a single output gives an array."""
    return dict(outputs) if isinstance(outputs, Mapping) else {specs[0].name: np.asarray(outputs)}


def _joined(parts: Sequence[Mapping[str, np.ndarray]], axes: Mapping[str, int | None]) -> dict[str, np.ndarray]:
    """The outputs of all batches by name; outputs without samples, one for each batch, along a new first axis."""
    joined = {}
    for name in parts[0]:
        axis = axes.get(name, 0)
        arrays = [part[name] for part in parts]
        joined[name] = np.stack(arrays) if axis is None else np.concatenate(arrays, axis)
    return joined


def _counter(adapter: Stepper, name: str) -> int:
    return int(adapter.stats.get(name, 0))


def _labels(stream: Stream, start: int, outputs: np.ndarray, head: HeadSpec) -> np.ndarray | None:
    """Return the labels of the samples whose `outputs` begin at sample `start`; None without labels."""
    if stream.labels is None:
        return None
    return fit_labels(stream.labels[start : start + len(outputs)], outputs.shape, head)
