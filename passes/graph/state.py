"""State of a bundle: a tensor that survives a step, and the graph input that carries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True, kw_only=True)
class StateTensor:
    """A tensor that survives a step.

    `value` is the graph input that carries the tensor. `next` is the graph value that replaces it when the step
    commits, None while another graph (the update) computes that value.
    """

    name: str
    role: str
    initial: np.ndarray
    value: ir.Value
    next: ir.Value | None = None


def bind_state(tensors: Sequence[StateTensor], model: ir.Model) -> tuple[StateTensor, ...]:
    """Return the tensors with the values of `model`, which is a clone of the model that holds their values."""
    values = ir.convenience.create_value_mapping(model.graph)
    return tuple(
        replace(
            tensor,
            value=values[str(tensor.value.name)],
            next=values[str(tensor.next.name)] if tensor.next is not None else None,
        )
        for tensor in tensors
    )


def state_input(graph: ir.Graph, name: str, initial: np.ndarray) -> ir.Value:
    """Return a new graph input for a state tensor.

    An initializer of this name, which other nodes may read, gets another name.
    """
    other = name
    while other in graph.initializers:
        other = f"{other}.source"
    if other != name:
        source = graph.initializers.pop(name)
        source.name = other
        graph.register_initializer(source)
    value = ir.val(name, dtype=ir.DataType.from_numpy(initial.dtype), shape=initial.shape)
    graph.inputs.append(value)
    return value


def freeze(graph: ir.Graph, parameters: Sequence[StateTensor]) -> None:
    """Make `parameters` constants instead of graph inputs, with their initial values."""
    for parameter in parameters:
        value = parameter.value
        graph.inputs.remove(value)
        value.const_value = ir.tensor(parameter.initial, name=value.name)
        graph.register_initializer(value)
