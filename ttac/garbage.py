"""A pause of Python's garbage collector, which would search a graph of a hundred thousand objects again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the collection of reference cycles; only a few copies of graphs pile up, and they share their weights.

    Collections that freed next to nothing took a third of the time of a compile.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
