"""A stream of samples through an adapter, batch by batch, and the figures of the run.

Imports the standard library, numpy and neighbours of this folder only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ttac.runtime.records import HeadSpec
from ttac.samples.images import Stream
from ttac.samples.predictions import CLASSES, Tally, fit_labels


class Stepper(Protocol):
    """The part of `ttac.Adapter` that a stream needs."""

    @property
    def stats(self) -> Mapping[str, Any]:
        """Counters and scalars since the bundle was loaded or reset."""

    def step(self, x: np.ndarray) -> np.ndarray:
        """Predict and adapt."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predict with the adapted state."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a stream.

    Attributes:
        logits: float32 [samples, ...], the outputs in order; None where they were not kept.
        samples: number of samples.
        seconds: time inside the adapter; the time to read the samples does not count.
        rejected: number of steps whose new state was not finite, so that the adapter kept the old state.
        entropy: mean entropy of the predictions in nats, 0 when all are certain; None where the outputs have no head.
        error: fraction of wrong predictions; None without labels.
    """

    logits: np.ndarray | None
    samples: int
    seconds: float
    rejected: int
    entropy: float | None = None
    error: float | None = None

    def summary(self) -> dict[str, Any]:
        """The numbers by name, without those that are None."""
        numbers: dict[str, Any] = {
            "samples": self.samples,
            "seconds": round(self.seconds, 4),
            "ms_per_sample": round(1000 * self.seconds / self.samples, 4),
            "mean_entropy": self.entropy if self.entropy is None else round(self.entropy, 6),
            "rejected_steps": self.rejected,
            "error": self.error if self.error is None else round(self.error, 6),
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

    `adapt` chooses between `step` and `predict`.  `head` is the reading of the outputs, None where they are not read.
    The outcome holds all outputs if `keep`.  `moved` gets the number of samples after each batch.
    Raises UsageError for labels that do not fit the predictions.
    """
    before = _rejected(adapter)
    run = adapter.step if adapt else adapter.predict
    tally = Tally(head=head) if head is not None else None
    parts: list[np.ndarray] = []
    seconds, done = 0.0, 0
    for x in stream.batches(batch, smallest):
        start = time.perf_counter()
        outputs = np.asarray(run(x))
        seconds += time.perf_counter() - start
        if tally is not None:
            tally.add(outputs, _labels(stream, done, outputs, tally.head))
        parts += [outputs] if keep else []
        done += len(x)
        moved(len(x))
    return Outcome(
        logits=np.concatenate(parts) if keep else None,
        samples=done,
        seconds=seconds,
        rejected=_rejected(adapter) - before,
        entropy=tally.mean_entropy if tally else None,
        error=tally.error if tally else None,
    )


def _rejected(adapter: Stepper) -> int:
    return int(adapter.stats.get("rejected", 0))


def _labels(stream: Stream, start: int, outputs: np.ndarray, head: HeadSpec) -> np.ndarray | None:
    """Return the labels of the samples whose `outputs` begin at sample `start`; None without labels."""
    if stream.labels is None:
        return None
    return fit_labels(stream.labels[start : start + len(outputs)], outputs.shape, head)
