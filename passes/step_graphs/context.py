"""The subject of a method's hooks, and the small graphs of a method: their inputs, their start and their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.adapt.adapt_norms import Adaptation
from ttac.passes.differentiate.heads import Head
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.sample_set import SampleSet
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.norms.norm_sites import NormSite
from ttac.passes.plan.keep_ratios import Layer
from ttac.spec import Target


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that a method's hooks see while it is compiled.

    Attributes:
        model: the normal form; `refine` and `constants` see the adapted model.
        head: the reading of the output, None where it is unclear and the method has no loss.
        sites: the norms to adapt, in graph order.
        settings: every option of the method with its value.
        batch: the most samples of a step.
        samples: calibration samples, None without `--calibration`.
        adaptation: the rewritten norms and their state; empty for `check` and `choose_trained`.
        say: takes one line for the user.
    """

    model: ir.Model
    head: Head | None
    sites: Sequence[NormSite]
    settings: Mapping[str, Any]
    batch: int
    target: Target
    samples: SampleSet | None = None
    adaptation: Adaptation = field(default_factory=Adaptation)
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True, kw_only=True)
class Context:
    """The values and settings that a method's graphs are built from.

    Attributes:
        parameters: the trained state; gradients: the values that the backward gives for them, in the same order.
        tracked: the state whose next values the forward gives, such as running averages.
        logits: name of the value with the scores, before any Softmax or Sigmoid; head: the reading of the output.
        output: name of the model's output that the head reads.
        logits_are_probabilities: whether the loss gives no scores, and `logits` is the output of a Softmax or Sigmoid.
        reach: name of a value above 0 for a batch within reach of the source, beyond which a batch is held; or empty.
        constants: arrays of the method's hook `constants`, by name.
        layers: the trained weights whose cached inputs are kept in part.
        x: the model's input; batch: the most samples of a step.
    """

    parameters: Sequence[StateTensor]
    gradients: Sequence[str]
    logits: str
    head: Head
    settings: Mapping[str, Any]
    opset: int
    tracked: Sequence[StateTensor] = ()
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    layers: Sequence[Layer] = ()
    x: ir.Value | None = None
    output: str = ""
    batch: int = 1
    logits_are_probabilities: bool = False
    reach: str = ""

    @property
    def classes(self) -> int:
        """The number of classes that a prediction decides between."""
        return self.head.classes


@dataclass(frozen=True)
class MethodGraph:
    """A graph, the state it moves (`next` are graph outputs), and the outputs it reports with their names.

    `more` are graphs that run after it.  Their only outputs are state that nothing later in the step reads.
    """

    model: ir.Model
    state: tuple[StateTensor, ...] = ()
    stats: Mapping[str, str] = field(default_factory=dict)
    more: tuple[MethodGraph, ...] = ()

    @property
    def moves(self) -> dict[str, str]:
        """Graph output -> state tensor."""
        return {str(tensor.next.name): tensor.name for tensor in self.state if tensor.next is not None}


def new_graph(name: str, opset: int) -> Builder:
    """A builder for the empty graph `name`; its nodes belong to the room of that name."""
    return Builder(ir.Graph([], [], nodes=[], opset_imports={"": opset}, name=name), name, opset)


def read(op: Builder, name: str, shape: Sequence[int | str]) -> ir.Value:
    """A new float32 graph input of `shape`, which another graph gives by this name."""
    value = ir.val(name, dtype=ir.DataType.FLOAT, shape=ir.Shape(list(shape)))
    op.graph.inputs.append(value)
    return value


def read_parameters(op: Builder, context: Context) -> list[ir.Value]:
    """New graph inputs for the trained state."""
    return [state_input(op.graph, parameter.name, parameter.initial) for parameter in context.parameters]


def read_gradients(op: Builder, context: Context, names: Sequence[str] | None = None) -> list[ir.Value]:
    """New graph inputs for the gradients, or for values of other `names` in their shapes."""
    names = context.gradients if names is None else names
    return [state_input(op.graph, name, p.initial) for name, p in zip(names, context.parameters, strict=True)]


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


def counter(op: Builder, name: str, following: Callable[[ir.Value], ir.Value]) -> StateTensor:
    """The state `name`, a number that starts at 0 and becomes `following` of itself."""
    zero = np.zeros((), np.float32)
    before = state_input(op.graph, name, zero)
    return StateTensor(name=name, role="counter", initial=zero, value=before, next=following(before))


def taken_over(op: Builder, tensors: Sequence[StateTensor], owner: str = "", role: str = "") -> MethodGraph:
    """The graph under construction with the next values that the forward gave for `tensors` as the state of `owner`.

    Without `role`, each tensor keeps its own.
    """
    state = []
    for tensor in tensors:
        assert tensor.next is not None
        value = state_input(op.graph, str(tensor.next.name), tensor.initial)
        kept = op.Identity(value, name=f"{owner}{tensor.name}.kept")
        op.graph.outputs.append(kept)
        state.append(replace(tensor, name=f"{owner}{tensor.name}", role=role or tensor.role, value=value, next=kept))
    return MethodGraph(ir.Model(op.graph, ir_version=8), tuple(state))
