"""A graph of one operator, as the gradient tests use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int | str, ...]
N = "N"
"""Size of the batch axis."""


@dataclass(frozen=True)
class Floats:
    """A float input of `shape` (N is the batch).

    `draw`: "normal"; "positive" (0.5 to 2); "apart" (no two equal, none at a kink); "fixed": not differentiated.
    """

    shape: Shape
    draw: str = "normal"


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """One node; compared by identity.

    Args:
        inputs: per input a `Floats`, an array (a constant) or None (left out).
        outputs: how many, where the operator leaves it open.
        used: the outputs that the loss reads; all float ones by default.
        oracle: whose forward the finite differences use: "reference" (onnx.reference, float64), or "onnxruntime"
            (float32) where the reference is wrong or slow; the case's `note` says why.
        none: positions of inputs without gradient.
        torch: whether torch has the same operator to compare with.
        retired: whether onnx's own tools refuse to type or check the operator in this opset.
    """

    op: str
    label: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 0
    used: tuple[int, ...] = ()
    opset: int = 18
    oracle: str = "reference"
    note: str = ""
    none: tuple[int, ...] = ()
    torch: bool = False
    retired: bool = False

    @property
    def trained(self) -> list[int]:
        """Positions of the inputs to differentiate."""
        floats = [position for position, value in enumerate(self.inputs) if isinstance(value, Floats)]
        return [position for position in floats if self.inputs[position].draw != "fixed" and position not in self.none]

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"


def case_of(op: str, *inputs: Any, label: str = "plain", **options: Any) -> Case:
    """Return a case; `options` with the name of a field of `Case` set it, the others become attributes of the node."""
    fields = {key: options.pop(key) for key in list(options) if key in Case.__dataclass_fields__}
    floats = tuple(Floats(value) if isinstance(value, tuple) else value for value in inputs)
    return Case(op=op, label=label, inputs=floats, attributes=options, **fields)
