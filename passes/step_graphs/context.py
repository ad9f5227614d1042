"""The small graphs of a method besides forward and backward: what they are made from, and what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.heads import Head
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor
from ttac.passes.plan.keep_ratios import Layer


@dataclass(frozen=True)
class Context:
    """What a method's graphs are made from.

    Attributes:
        parameters: the trained state; gradients: the values the backward gives for them, in the same order.
        logits: name of the value with the scores, before any Softmax or Sigmoid; head: how they are read.
        anchor: Fisher information of each parameter by name, empty without one.
        layers: the trained weights whose inputs are kept in part, for methods that do so.
        x: the model's input; batch: the most samples a step may have.
    """

    parameters: Sequence[StateTensor]
    gradients: Sequence[str]
    logits: str
    head: Head
    settings: Mapping[str, Any]
    opset: int
    anchor: Mapping[str, np.ndarray] = field(default_factory=dict)
    layers: Sequence[Layer] = ()
    x: ir.Value | None = None
    batch: int = 1

    @property
    def classes(self) -> int:
        """Between how many classes a prediction decides."""
        return self.head.classes


@dataclass(frozen=True)
class MethodGraph:
    """A graph, the state it moves (`next` are graph outputs), and the outputs it reports with their names.

    `more` are graphs that run behind it, and give nothing but state that nothing later reads.
    """

    model: ir.Model
    state: tuple[StateTensor, ...] = ()
    stats: Mapping[str, str] = field(default_factory=dict)
    more: tuple[MethodGraph, ...] = ()

    @property
    def moves(self) -> dict[str, str]:
        """Graph output -> state tensor."""
        return {str(tensor.next.name): tensor.name for tensor in self.state if tensor.next is not None}


def finished(
    op: Builder,
    outputs: Mapping[str, ir.Value],
    state: Sequence[StateTensor] = (),
    stats: Mapping[str, str] | None = None,
) -> MethodGraph:
    """The graph under construction with `outputs` by these names, and `<state>.next` for the state it moves."""
    for name, value in outputs.items():
        value.name = name
        op.graph.outputs.append(value)
    for tensor in state:
        assert tensor.next is not None
        tensor.next.name = f"{tensor.name}.next"
        op.graph.outputs.append(tensor.next)
    return MethodGraph(ir.Model(op.graph, ir_version=8), tuple(state), dict(stats or {}))
