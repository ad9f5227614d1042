"""A teacher: parameters that follow the trained ones slowly, and whose predictions a loss takes as targets."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs import optimizers
from ttac.spec import TEACHER_SET

TARGET = "teacher.scores"
"""Input of a loss: the teacher's scores of the batch."""


def follow(op: Builder, flat: ir.Value, members: Sequence[StateTensor], decay: float) -> list[StateTensor]:
    """teacher <- d*teacher + (1 - d)*student, with the student's tensors `members` in the vector `flat`."""
    values = [state_input(op.graph, f"{TEACHER_SET}.{tensor.name}", tensor.initial) for tensor in members]
    following = op.Add(op.Mul(optimizers.flatten(op, values), decay), op.Mul(flat, 1.0 - decay))
    parts = optimizers.unflatten(op, following, members)
    return [
        StateTensor(name=str(value.name), role="optimizer", initial=tensor.initial, value=value, next=part)
        for tensor, value, part in zip(members, values, parts, strict=True)
    ]
