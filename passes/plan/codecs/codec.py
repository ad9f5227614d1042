"""The protocol of a codec, and the tensors that several codecs build."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims, sample_size

FLOAT, INT64, UINT8 = (int(getattr(ir.DataType, name)) for name in ("FLOAT", "INT64", "UINT8"))
TINY = 1e-30
"""Addend of every scale, without a unit: a tensor of zeros then divides by more than zero."""

Encoded = Sequence[ir.Value]
"""The tensors that a codec hands from the forward to the backward."""
LEAST_ENCODED_BYTES = 16 * 1024
"""Bytes below which a residual is not worth the nodes that encode and decode the tensor."""
Reader = Callable[..., ir.Value]
"""(op, encoded, like, other inputs...) to the output of an operator that reads the encoded value."""


class KeepRatio(NamedTuple):
    """Keep ratios that a codec reads: the ratio of this value, and the least ratio of all layers.

    Both are scalars in [0, 1].  A least ratio of 1 means that the whole net drops nothing.  `order` [C] holds a random
    number for each channel of the value, if the plan draws the kept parts.
    """

    own: ir.Value
    least: ir.Value
    order: ir.Value | None = None


def any_value(x: ir.Value, weights: Sequence[int]) -> bool:
    """Return that a codec takes values of every shape."""
    return True


@dataclass(frozen=True, kw_only=True)
class Codec:
    """One way to keep a value x for the backward.

    Attributes:
        name: the name in plans and reports.
        encode: builds the tensors that the forward hands over, from x and the keep ratio (None unless `drops`).
        decode: builds x, or its approximation, from these tensors; `like` has the dtype and shape of x.
        bytes: bytes of one sample of x at a keep ratio in [0, 1].
        error: bound of the decoded value's error; "none" for an exact codec.
        drops: whether the codec keeps a part of the elements only.
        parts: names of the tensors after the first one.
        readers: by operator, a function of x that needs no decoded x.  Where elements are dropped, its output is an
            approximation.
        estimate: (op, encoded, like, g) to further encoded tensors.  They hold estimates of the dropped elements of x,
            from the gradient g of a ChannelDot; the readers in that graph use them.
        takes: (x, elements of the trained weight of each layer that reads x) to whether the codec fits the shape of x.
        alone: whether the codec takes only values that a single layer reads.
        draws: whether each step draws the kept parts from the random numbers `KeepRatio.order`.
        one_size: whether the encoder and decoder are for one size of x.
        least_bytes: bytes of the whole batch below which x stays dense.
        others: name of the codec of values that this codec does not take, where a layer's input is kept in part.
    """

    name: str
    encode: Callable[[Builder, ir.Value, KeepRatio | None], Encoded]
    decode: Callable[[Builder, Encoded, ir.Value], ir.Value]
    bytes: Callable[[ir.Value, float], float]
    error: str
    drops: bool = False
    parts: tuple[str, ...] = ()
    readers: Mapping[str, Reader] = field(default_factory=dict)
    estimate: Callable[[Builder, Encoded, ir.Value, ir.Value], Encoded] | None = None
    takes: Callable[[ir.Value, Sequence[int]], bool] = any_value
    alone: bool = False
    draws: bool = False
    one_size: bool = True
    least_bytes: int = LEAST_ENCODED_BYTES
    others: str = "int8"

    @property
    def is_exact(self) -> bool:
        """Whether the decoded value equals x."""
        return self.error == "none"

    def names(self, value: str) -> dict[str, str]:
        """Return part -> name of the encoded tensor of the value of this name, in the order of `encode`."""
        return {part: ".".join(word for word in (value, self.name, part) if word) for part in ("", *self.parts)}


def row_of(x: ir.Value) -> int:
    """Return the elements of a row of `x`: one channel's map, one token's features, or a whole sample [N, F]."""
    sizes = dims(x)[1:]
    row = sizes[1:] if len(sizes) > 1 else sizes
    return math.prod(size for size in row if isinstance(size, int))  # the samples of [T, N, F] lie on the second axis


def elements_of(x: ir.Value) -> int:
    """Return the elements of one sample of `x`."""
    assert x.shape is not None
    return sample_size(x.shape)


def nan_unless_finite(op: Builder, scale: ir.Value, witness: ir.Value) -> ir.Value:
    """Return `scale`, or NaN where `witness` is not finite.

    Minimum, maximum and the encoded bytes do not show values that are not finite.
    """
    return op.Add(scale, op.Mul(witness, 0.0), like=scale)


def shaped_like(op: Builder, flat: ir.Value, like: ir.Value) -> ir.Value:
    """Return `flat` in the shape of `like`; the engine computes the batch."""
    return op.Reshape(flat, open_shape(like), like=like)


def open_shape(x: ir.Value) -> list[int]:
    """Return the shape of `x` with -1 for the batch."""
    return [size if isinstance(size, int) else -1 for size in dims(x)]


def matrix(op: Builder, x: ir.Value, columns: int) -> ir.Value:
    """Return `x` as rows of `columns` elements; the number of rows depends on the batch."""
    rows = op.Reshape(x, [-1, columns])
    rows.shape = ir.Shape([f"{elements_of(x) // columns}*N", columns])
    return rows


def zeros(op: Builder, like: ir.Value, dtype: type) -> ir.Value:
    """Return zeros of `dtype` in the shape of `like`."""
    return op.ConstantOfShape(op.Shape(like), value=ir.tensor(np.zeros(1, dtype)), like=like)
