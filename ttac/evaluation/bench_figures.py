"""The records of a benchmark: figures per method, model and batch, and the machine they hold for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ttac.errors import TtacError


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One method on one model at one batch, in milliseconds, bytes and ratios to inference of the source.

    Attributes:
        ratio: median of step over inference; spread: first and third quartile of this ratio.
        memory: `peak` and `loaded` of the step; None where the system has no counters.
        inference: `peak` and `loaded` of inference; None where the system has no counters.
        residuals: bytes planned to be kept between forward and backward.
        cache: the published cache in bytes: cached inputs of all layers; None for bundles without this figure.
        peers: the figures of the peers by variant: `milliseconds`, `ratio`, `spread`, `peak`, `loaded`.
    """

    model: str
    method: str
    batch: int
    inference_ms: float
    step_ms: float
    ratio: float
    spread: tuple[float, float]
    memory: Mapping[str, Any] | None
    inference: Mapping[str, Any] | None
    residuals: int | None
    cache: int | None
    compile_seconds: float | None
    peers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def best(self, name: str) -> float | None:
        """Return the least `ratio` or `peak` of the peers; None without peers or counters."""
        found = [peer[name] for peer in self.peers.values() if peer[name] is not None]
        return min(found, default=None)

    def as_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return {**self.__dict__, "spread": list(self.spread)}


@dataclass(frozen=True)
class Benchmark:
    """All figures; `about` holds the machine and the versions, `missing` model, method and error of each failure."""

    figures: Sequence[Figures]
    about: Mapping[str, str]
    peers: str = ""
    missing: Sequence[tuple[str, str, TtacError]] = ()

    def as_json(self) -> dict[str, Any]:
        """Return everything for a program."""
        missing = [{"model": m, "method": method, "reason": why.problem} for m, method, why in self.missing]
        return {"about": dict(self.about), "rows": [each.as_json() for each in self.figures], "missing": missing}
