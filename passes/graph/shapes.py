"""Read the shape of a value: its dimensions, and the number of elements in one sample."""

from __future__ import annotations

import math

import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.places import value_place

BATCH = "N"
"""Symbol of the batch dimension."""


def dims(value: ir.Value | None) -> list[int | str]:
    """Return the dimensions of `value`: ints, and names of symbolic dimensions.

    Raises UnsupportedError if the shape, or a dimension of it, is unknown.
    """
    assert value is not None, "an absent input has no shape"
    if value.shape is None:
        raise UnsupportedError(f"the shape of {value_place(value)} is unknown")
    sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    if any(size is None for size in sizes):
        raise UnsupportedError(f"the shape of {value_place(value)} is only known as {value.shape}")
    return sizes  # type: ignore[return-value]


def known_dims(value: ir.Value | None) -> list[int | str]:
    """Return the dimensions of `value`; nothing where one is unknown."""
    if value is None or value.shape is None or value.shape.has_unknown_dim():
        return []
    return dims(value)


def sample_size(shape: ir.Shape) -> int:
    """Return the elements of one sample in a tensor of this shape, whose batch is N or a multiple of N, `4*N`."""
    return math.prod(size if isinstance(size, int) else _multiple(str(size)) for size in shape)


def is_batch(symbol: str) -> bool:
    """Return whether the symbol is that of the batch, or of a multiple of the batch."""
    return symbol.rpartition("*")[2] == BATCH


def _multiple(symbol: str) -> int:
    """Return 4 for `4*N`, and 1 for `N`."""
    times, star, _ = symbol.partition("*")
    return int(times) if star and times.isdigit() else 1
