"""Events of the guard: it holds batches, learns again, turns the state back, or resets it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttac.runtime.records import GraphSpec

HOLD, RESUME, RESET, RETURN = "hold", "resume", "reset", "return"
ROW, RESETS, RETURNS = "held_in_a_row", "guard_resets", "guard_returns"
"""Reports of the guard's graphs that `adapter.stats` has."""
ADAPTED = "window_adapted"
"""Report of a bundle with a window: 1 in a step that adapted, else 0; other reports are then older."""
COUNTERS = (RESETS, RETURNS)
"""Reports that are state too, so a saved state brings those of earlier streams."""


@dataclass(frozen=True)
class Event:
    """A transition of the guard in one step.

    Attributes:
        kind: "hold" at the first batch that the guard holds, "resume" at the next batch that the step learns from,
            "reset" when the guard sets the state to its compiled values, "return" when the state predicted calibration
            samples so unlike the source that the guard turned it back.
        step: number of the step since the load or the last `reset`, from 1.
        batches: consecutive held batches: 1 at "hold", all of them at "resume" and "reset", the last ones at "return".
    """

    kind: str
    step: int
    batches: int

    def __str__(self) -> str:
        held = f"{self.batches} held batch{'es' if self.batches != 1 else ''}"
        texts = {
            HOLD: "the guard holds batches: their predictions carry little information",
            RESUME: f"the guard lets the step learn again, after {held}",
            RESET: f"the guard reset the state, after {held} in a row",
            RETURN: "the guard turned the state back: it predicts calibration samples unlike the source",
        }
        return f"step {self.step}: {texts[self.kind]}"


def events(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Event]:
    """The events between the stats before a step and after it; none for a bundle without a guard."""
    if ROW not in after:
        return
    step, was, now = int(after["steps"]), int(before.get(ROW, 0)), int(after[ROW])
    if now and not was:
        yield Event(HOLD, step, now)
    if was and not now:
        yield Event(RESUME, step, was)
    if RESETS in before and after[RESETS] > before[RESETS]:
        yield Event(RESET, step, now)
    if after.get(RETURNS, 0) > before.get(RETURNS, 0):
        yield Event(RETURN, step, now)


def counters(graphs: Iterable[GraphSpec], arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The guard's counters in the `arrays` of a state, by their names in `adapter.stats`."""
    found = _reported(graphs, arrays)
    return {name: float(array) for name, array in found if name in COUNTERS and array.size == 1}


def counted(graphs: Iterable[GraphSpec], arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The reports that a state has before their graphs run, by name; a negative value is unknown.

    Only a held batch runs the graph that counts held batches.
    """
    firsts = {name: float(array.reshape(-1)[0]) for name, array in _reported(graphs, arrays) if array.size}
    return {name: value for name, value in firsts.items() if value >= 0}


def _reported(graphs: Iterable[GraphSpec], arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The name in `adapter.stats` and the array of each output that is reported and becomes state."""
    for graph in graphs:
        for output, name in graph.stats.items():
            if output in graph.state:
                yield name, arrays[graph.state[output]]


def warn_of_one(place: Path, manifest: Mapping[str, Any], samples: int) -> None:
    """Warn of a step with one sample if norms take the statistics of the batch, which are then those of the sample."""
    alone = samples == 1 and not manifest["method"]["settings"].get("window")
    if alone and any(site.get("statistics") == "batch" for site in manifest["sites"]):
        hint = "compile with `--set window=16` or a method for single samples, or give more samples a step"
        log("WARNING", "`%s`: one sample a step, and its norms take the statistics of the batch: %s", place, hint)


def log(level: str, text: str, *values: object) -> None:
    """Send a message to the logger `ttac`, at a level such as "WARNING"."""
    import logging  # 5 ms that a load without a message saves

    logging.getLogger("ttac").log(getattr(logging, level), text, *values)
