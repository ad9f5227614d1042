"""A stream of samples through an adapter, batch by batch, with what came of it.  Standard library and numpy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ttac.runtime.manifest import HeadSpec
from ttac.samples.images import Stream
from ttac.samples.predictions import CLASSES, Tally, fit_labels


class Adapter(Protocol):
    """The part of `ttac.Adapter` a stream needs."""

    @property
    def stats(self) -> Mapping[str, Any]:
        """Counters and scalars since the bundle was loaded or reset."""

    def step(self, x: np.ndarray) -> np.ndarray:
        """Predict and adapt."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Predict with the adapted state."""


@dataclass(frozen=True)
class Outcome:
    """What a stream gave.

    Attributes:
        logits: float32 [samples, ...], the outputs in order; none where they were not kept.
        samples: how many there were.
        seconds: time inside the adapter, reading the samples not included.
        rejected: steps whose new state was not finite, so that the state stayed.
        entropy: mean entropy of the predictions in nats, 0 when all are certain; None where the outputs are not read.
        error: share of wrong predictions, None without labels.
    """

    logits: np.ndarray | None
    samples: int
    seconds: float
    rejected: int
    entropy: float | None = None
    error: float | None = None

    def summary(self) -> dict[str, Any]:
        """The numbers, by name."""
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
    adapter: Adapter,
    stream: Stream,
    *,
    batch: int,
    smallest: int = 1,
    adapt: bool = True,
    head: HeadSpec | None = CLASSES,
    keep: bool = True,
    moved: Callable[[int], object] = lambda samples: None,
) -> Outcome:
    """Feed all samples in order, `batch` at a time and never fewer than `smallest`; tell `moved` each batch's size.

    `head` says how the outputs are read, None that they are not; `keep` whether the outcome holds them all.
    Raises UsageError for labels that do not fit the predictions.
    """
    before = int(adapter.stats.get("rejected", 0))
    run = adapter.step if adapt else adapter.predict
    tally = Tally(head) if head is not None else None
    parts: list[np.ndarray] = []
    seconds, done = 0.0, 0
    for x in stream.batches(batch, smallest):
        start = time.perf_counter()
        outputs = np.asarray(run(x))
        seconds += time.perf_counter() - start
        if tally is not None:
            tally.add(outputs, _labels(stream, done, outputs, tally.head))
        if keep:
            parts.append(outputs)
        done += len(x)
        moved(len(x))
    logits, rejected = np.concatenate(parts) if keep else None, int(adapter.stats.get("rejected", 0)) - before
    if tally is None:
        return Outcome(logits, done, seconds, rejected)
    return Outcome(logits, done, seconds, rejected, tally.mean_entropy, tally.error)


def _labels(stream: Stream, start: int, outputs: np.ndarray, head: HeadSpec) -> np.ndarray | None:
    """The labels of the samples from `start` that `outputs` belong to; None if there are none."""
    if stream.labels is None:
        return None
    return fit_labels(stream.labels[start : start + len(outputs)], outputs.shape, head)
