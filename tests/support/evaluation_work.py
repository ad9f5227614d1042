"""Work for sweeps, in a module that other processes can import."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def halved(number: int) -> float:
    """Half of an even number; fails for an odd one."""
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number / 2


def dies_once(item: tuple[str, int]) -> int:
    """The square of the number; the process that gets 2 first is lost."""
    mark, number = Path(item[0]), item[1]
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def always_dies(number: int) -> int:
    """The process is lost."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number
