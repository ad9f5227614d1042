"""Figures of a running stream: time, entropy, classes and guard of the last steps, also for Prometheus."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ttac.errors import RuntimeMissingError, UsageError
from ttac.runtime.events import ADAPTED, RESETS, ROW
from ttac.runtime.records import HeadSpec

RECENT = 1000
"""Predictions in the histogram."""
LOOPBACK = "127.0.0.1"
DRIFT = "drift"


@dataclass(kw_only=True)
class LiveFigures:
    """Figures after each step.

    Attributes:
        head: reading of the output; None where no classes and no entropy exist.
        milliseconds, entropy: of the last step; the entropy is a mean in nats.
        classes: classes of the last `RECENT` predictions.
        held: steps from which the guard let the step learn nothing; with a window, full windows.
    """

    head: HeadSpec | None
    steps: int = 0
    samples: int = 0
    held: int = 0
    milliseconds: float = 0.0
    entropy: float | None = None
    classes: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))
    stats: Mapping[str, Any] = field(default_factory=dict)

    def add(self, outputs: np.ndarray, samples: int, milliseconds: float, stats: Mapping[str, Any]) -> list[int]:
        """Count a step with the output that the head reads; return the classes of its predictions."""
        from ttac.samples.predictions import counted_classes, counted_positions, entropies

        self.steps, self.samples = self.steps + 1, self.samples + samples
        self.milliseconds, self.stats = milliseconds, stats
        self.held += _is_held(stats)
        if self.head is None:
            return []
        each = entropies(outputs, self.head)[counted_positions(outputs, self.head)]
        self.entropy = float(each.mean()) if each.size else 0.0
        chosen = [int(number) for number in counted_classes(outputs, self.head)]
        self.classes.extend(chosen)
        return chosen

    @property
    def guard(self) -> str:
        """State of the guard in words."""
        if ROW not in self.stats:
            return "off"
        row, resets = int(self.stats[ROW]), int(self.stats.get(RESETS, 0))
        doing = f"holds, {row} in a row" if row else "learns"
        return f"{doing}; {self.held} of {self.steps} batches held, {resets} resets"

    def most_common(self, count: int) -> list[tuple[int, float]]:
        """The `count` most frequent classes of the histogram, and their share of the predictions."""
        return [(number, times / len(self.classes)) for number, times in Counter(self.classes).most_common(count)]

    def as_json(self) -> dict[str, Any]:
        """The figures by name, for a program."""
        figures = {
            "step": self.steps,
            "samples": self.samples,
            "milliseconds": round(self.milliseconds, 3),
            "entropy": self.entropy if self.entropy is None else round(self.entropy, 5),
            "classes": {str(number): round(share, 4) for number, share in self.most_common(10)},
            "held": self.held,
        }
        return {**figures, **{name: self.stats[name] for name in (ROW, RESETS, DRIFT) if name in self.stats}}


def _is_held(stats: Mapping[str, Any]) -> bool:
    """Whether the guard held the batch of the last step; a step that only filled a window had no guard."""
    return bool(stats.get(ROW)) and stats.get(ADAPTED, 1) > 0


class Exporter:
    """Metrics of a stream for Prometheus.

    Raises RuntimeMissingError without `prometheus-client`.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge
        except ImportError as error:
            hint = "`pip install 'ttac[watch]'`"
            raise RuntimeMissingError(
                "the metrics need prometheus-client", where="`--prometheus`", hint=hint
            ) from error
        self.registry: Any = CollectorRegistry()
        shared: dict[str, Any] = {"registry": self.registry}
        self._steps = Counter("ttac_steps", "Steps", **shared)
        self._samples = Counter("ttac_samples", "Samples in these steps", **shared)
        self._held = Counter("ttac_guard_held", "Steps that the guard held", **shared)
        self._classes = Counter("ttac_predictions", "Predictions of a class", ["class"], **shared)
        self._seconds = Gauge("ttac_step_seconds", "Time of the last step", **shared)
        self._entropy = Gauge("ttac_entropy_nats", "Mean entropy of the last batch", **shared)
        self._holding = Gauge("ttac_guard_holding", "Whether the guard holds, 0 or 1", **shared)
        self._resets = Gauge("ttac_guard_resets", "Resets of the state by the guard", **shared)
        self._drift = Gauge("ttac_drift", "Distance of the trained tensors from the source", **shared)

    def update(self, figures: LiveFigures, samples: int, classes: Sequence[int]) -> None:
        """Take over the figures after a step with `samples` samples and these predictions."""
        stats = figures.stats
        self._steps.inc()
        self._samples.inc(samples)
        self._held.inc(_is_held(stats))
        for number, count in Counter(classes).items():
            self._classes.labels(str(number)).inc(count)
        self._seconds.set(figures.milliseconds / 1000)
        self._entropy.set(float("nan") if figures.entropy is None else figures.entropy)
        self._holding.set(bool(stats.get(ROW)))
        self._resets.set(stats.get(RESETS, 0))
        self._drift.set(stats.get(DRIFT, 0))

    @contextmanager
    def served(self, port: int) -> Iterator[str]:
        """The address of the metrics, on this computer only, for the time of the block.

        Raises UsageError for a port that is taken or not permitted.
        """
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(port, addr=LOOPBACK, registry=self.registry)
        except (OSError, OverflowError) as error:
            hint = "give another port"
            raise UsageError(f"cannot serve the metrics: {error}", where=f"`--prometheus {port}`", hint=hint) from error
        try:
            yield f"http://{LOOPBACK}:{server.server_port}/metrics"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
