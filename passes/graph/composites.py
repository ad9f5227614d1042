"""The few operators ttac adds to ONNX while it compiles; `lower` writes each out in standard operators.

A composite exists where a gradient is cheaper as one formula than as the sum of its primitives' gradients, or where the
best spelling depends on the target.  Each states its output types (`types`) and its meaning in ONNX (`expand`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx_ir as ir

DOMAIN = "ttac"
Types = list[tuple[ir.DataType | None, ir.Shape | None]]
Expansion = TypeVar("Expansion", bound=Callable[..., Any])
"""A function `(op: Builder, node) -> Value or tuple of Values`; the builder is not imported here, for it reads this."""


@dataclass(frozen=True)
class Composite:
    """One operator of the vocabulary.

    `types(node)` gives (dtype, shape) per output; `expand(op, node)` builds the standard nodes and returns the values
    that replace the node's outputs, a Value or a tuple of them.
    """

    name: str
    outputs: int
    types: Callable[[ir.Node], Types]
    expand: Callable[..., Any]


COMPOSITES: dict[str, Composite] = {}


def composite(name: str, types: Callable[[ir.Node], Types], outputs: int = 1) -> Callable[[Expansion], Expansion]:
    """Register the decorated function as the expansion of `ttac::name`."""

    def register(expand: Expansion) -> Expansion:
        COMPOSITES[name] = Composite(name, outputs, types, expand)
        return expand

    return register


def like(position: int) -> Callable[[ir.Node], Types]:
    """One output with dtype and shape of the input at `position`."""

    def types(node: ir.Node) -> Types:
        value = node.inputs[position]
        assert value is not None
        return [(value.dtype, value.shape)]

    return types


def per_channel(outputs: int = 1) -> Callable[[ir.Node], Types]:
    """`outputs` vectors [C], with dtype and C of the first input, which is [N, C, ...]."""

    def types(node: ir.Node) -> Types:
        value = node.inputs[0]
        assert value is not None and value.shape is not None
        return [(value.dtype, ir.Shape([value.shape[1]]))] * outputs

    return types
