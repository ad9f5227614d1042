"""Python's garbage collector, kept from looking through a graph of a hundred thousand objects again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No collection of reference cycles inside; what piles up is a few copies of graphs, whose weights are shared.

    A third of a compile's time went into collections that found next to nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
