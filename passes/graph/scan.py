"""A loop over the first axis of tensors, as one node Scan whose body reads nothing from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

from ttac.passes.graph.builder import Builder

Values = Sequence[ir.Value]
Step = Callable[[Builder, Values, Values, Values], tuple[Values, Values]]
"""From a builder, the states, the slices and the fixed values to the next states and the results of one step."""


def scan(
    op: Builder, step: Step, states: Values, sequences: Values, fixed: Values = (), *, backwards: bool = False
) -> tuple[list[ir.Value], list[ir.Value]]:
    """Return the last states, and the results of all steps stacked along a new first axis.

    Args:
        step: builds one step; it makes no constants, since names in the body must differ from all names outside.
        states: the first states; sequences: tensors [T, ...], of which a step reads one slice.
        fixed: further values that each step reads.
        backwards: begin with the last slice; the results lie in the order of the slices.
    """
    body = ir.Graph([], [], nodes=[], opset_imports={"": op.opset}, name="step")
    inner, prefix = Builder(body, op.room, op.opset), op.fresh(f"{op.layer}.step")
    carried = [_input(body, f"{prefix}.state.{i}", value, 0) for i, value in enumerate([*states, *fixed])]
    slices = [_input(body, f"{prefix}.slice.{i}", value, 1) for i, value in enumerate(sequences)]
    with inner.at(prefix):
        after, results = step(inner, carried[: len(states)], slices, carried[len(states) :])
        kept = [inner.Identity(value) for value in carried[len(states) :]]
    body.outputs.extend([*after, *kept, *results])
    attributes: dict[str, Any] = {"body": body, "num_scan_inputs": len(sequences)}
    if backwards:
        attributes |= {"scan_input_directions": [1] * len(sequences), "scan_output_directions": [1] * len(results)}
    node = ir.node("Scan", [*states, *fixed, *sequences], attributes, num_outputs=len(body.outputs))
    op.place(node, "scan")
    length = sequences[0].shape[0] if sequences[0].shape is not None else None
    for position, (outer, value) in enumerate(zip(node.outputs, body.outputs, strict=True)):
        stacked = [] if position < len(carried) else [length]
        outer.type, outer.shape = value.type, ir.Shape([*stacked, *(value.shape or ())])
    return list(node.outputs[: len(states)]), list(node.outputs[len(carried) :])


def _input(body: ir.Graph, name: str, like: ir.Value, skipped: int) -> ir.Value:
    """Return an input of `body` with the type of `like` and its shape without the first `skipped` axes."""
    value = ir.val(name, shape=ir.Shape(list(like.shape or ())[skipped:]), type=like.type)
    body.inputs.append(value)
    return value
