"""Registry of the operators that ttac adds to ONNX while it compiles.

The room `lower` expands each into standard operators. A composite exists for one of two reasons. Its gradient is
cheaper as one formula than as the sum of its primitives' gradients. Or its best expansion depends on the target. Each
composite states its output types (`types`) and its meaning in ONNX (`expand`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx_ir as ir

DOMAIN = "ttac"
Types = list[tuple[ir.DataType | None, ir.Shape | None]]
Expansion = TypeVar("Expansion", bound=Callable[..., Any])
"""Type of a function `(op: Builder, node) -> Value or tuple of Values`. This file cannot import Builder, which
imports it.
"""


@dataclass(frozen=True)
class Composite:
    """One operator of the domain `ttac`.

    `types(node)` returns (dtype, shape) for each output. `expand(op, node)` builds the standard nodes and returns the
    replacements of the node's outputs, a Value or a tuple of Values.
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
    """Return the `types` of an operator with one output, whose dtype and shape are those of the input at `position`."""

    def types(node: ir.Node) -> Types:
        value = node.inputs[position]
        assert value is not None
        return [(value.dtype, value.shape)]

    return types


def per_channel(outputs: int = 1) -> Callable[[ir.Node], Types]:
    """Return the `types` of an operator with `outputs` vectors [C], by dtype and C of its first input [N, C, ...]."""

    def types(node: ir.Node) -> Types:
        value = node.inputs[0]
        assert value is not None and value.shape is not None
        return [(value.dtype, ir.Shape([value.shape[1]]))] * outputs

    return types
