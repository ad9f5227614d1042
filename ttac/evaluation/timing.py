"""Paired times: two actions in turn in one process, so that other work on the machine disturbs both alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WARM_UP, PAIRS = 2, 9
"""Number of untimed turns, and default number of timed turns."""
FEWEST = 7
"""Least number of turns for a median."""
SHORTEST = 0.05
"""Least seconds of a turn: a shorter action is repeated within the turn."""


@dataclass(frozen=True)
class Times:
    """Seconds of inference and of a step; element i of both arrays is from the same turn."""

    inference: np.ndarray
    step: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """Step over inference, turn by turn."""
        ratios: np.ndarray = self.step / self.inference
        return ratios

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return float(np.median(self.ratios))

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile of the ratios."""
        return float(np.quantile(self.ratios, 0.25)), float(np.quantile(self.ratios, 0.75))


def paired(inference: Callable[[], object], step: Callable[[], object], pairs: int = PAIRS) -> Times:
    """Time both actions in `pairs` turns after a warm-up; the order within a turn alternates."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    start = time.perf_counter()
    for _ in range(WARM_UP):
        inference()
        step()
    repeats = max(1, math.ceil(SHORTEST * WARM_UP / (time.perf_counter() - start)))
    for turn in range(pairs):
        for stepping in (False, True) if turn % 2 else (True, False):
            action = step if stepping else inference
            start = time.perf_counter()
            for _ in range(repeats):
                action()
            seconds[stepping].append((time.perf_counter() - start) / repeats)
    return Times(np.array(seconds[False]), np.array(seconds[True]))
