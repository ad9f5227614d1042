"""The receiver of an evaluation's progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _ignore(*event: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Watch:
    """The receiver of an evaluation's progress.

    Attributes:
        say: gets lines of talk.
        expect: gets the name of a piece of work and the number of its steps when the work begins.
        moved: gets the number of steps that finished since the last call.
    """

    say: Callable[[str], object] = _ignore
    expect: Callable[[str, int], object] = _ignore
    moved: Callable[[int], object] = _ignore
