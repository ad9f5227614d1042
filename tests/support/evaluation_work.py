"""Pieces of work for the tests of sweeps, in a module that other processes can import."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def halved(number: int) -> float:
    """Return half of an even number; raises ValueError for an odd number."""
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number / 2


def dies_once(item: tuple[str, int]) -> int:
    """Return the square of the number; the first process that gets 2 kills itself."""
    mark, number = Path(item[0]), item[1]
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def always_dies(number: int) -> int:
    """Kill the process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number
