"""A stream of samples through an adapter, batch by batch, with what came of it.  Standard library and numpy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ttac.images import Stream


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
        logits: float32 [samples, classes].
        seconds: time inside the adapter, reading the samples not included.
        rejected: steps whose new state was not finite, so that the state stayed.
        error: share of wrong predictions, None without labels.
    """

    logits: np.ndarray
    seconds: float
    rejected: int
    error: float | None = None

    @property
    def entropy(self) -> float:
        """Mean entropy of the predictions in nats; 0 when every sample's class is certain."""
        return mean_entropy(self.logits)

    def summary(self) -> dict[str, Any]:
        """The numbers, by name."""
        samples = len(self.logits)
        numbers: dict[str, Any] = {
            "samples": samples,
            "seconds": round(self.seconds, 4),
            "ms_per_sample": round(1000 * self.seconds / samples, 4),
            "mean_entropy": round(self.entropy, 6),
            "rejected_steps": self.rejected,
        }
        return numbers if self.error is None else {**numbers, "error": round(self.error, 6)}


def run_stream(
    adapter: Adapter,
    stream: Stream,
    *,
    batch: int,
    smallest: int = 1,
    adapt: bool = True,
    moved: Callable[[int], object] = lambda samples: None,
) -> Outcome:
    """Feed all samples in order, `batch` at a time and never fewer than `smallest`; tell `moved` each batch's size."""
    before = int(adapter.stats.get("rejected", 0))
    run = adapter.step if adapt else adapter.predict
    parts, seconds = [], 0.0
    for x in stream.batches(batch, smallest):
        start = time.perf_counter()
        parts.append(np.asarray(run(x)))
        seconds += time.perf_counter() - start
        moved(len(x))
    logits = np.concatenate(parts)
    error = None if stream.labels is None else float(np.mean(logits.argmax(axis=-1) != stream.labels))
    return Outcome(logits, seconds, int(adapter.stats.get("rejected", 0)) - before, error)


def mean_entropy(logits: np.ndarray) -> float:
    """Mean over samples of -sum p ln p with p = softmax(logits over the last axis), in nats."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return float(-(np.exp(log_p) * log_p).sum(axis=-1).mean())
