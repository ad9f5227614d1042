"""Full tuning: kernels, matrices and biases of a model become state that trains, in addition to its norms.

Every layer owns its tensors, also in the source model, so that an adapted state can be baked into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.passes.adapt.own_parameters import own_initializer
from ttac.passes.graph.layer_names import unique
from ttac.passes.graph.state import StateTensor, state_input

WEIGHTED = frozenset("Conv ConvTranspose Gemm".split())
"""They take a kernel or matrix as their second input, and a bias as their third."""


@dataclass(frozen=True)
class Owned:
    """A constant that trains: input `position` of the node called `node`, as the initializer `name`."""

    node: str
    position: int
    name: str


def own_weights(model: ir.Model) -> list[Owned]:
    """Give every trainable constant a separate initializer, in place; the tensors in graph order.

    A name that an exporter made up (`onnx::Conv_12`) becomes the name of the node.
    """
    graph = model.graph
    taken = {*graph.initializers, *(str(v.name) for v in graph.inputs)}
    taken |= {str(v.name) for node in graph for v in node.outputs}
    owned = []
    for node, position, role in list(_trainable(graph)):
        old = node.inputs[position]
        assert old is not None and old.const_value is not None
        name = str(old.name)
        if len(old.uses()) > 1 or "::" in name or "[" in name:
            name = unique(f"{node.name}.{role}", taken)
            taken.add(name)
            own_initializer(graph, node, position, name)
        owned.append(Owned(str(node.name), position, name))
    return owned


def train_weights(model: ir.Model, owned: Sequence[Owned]) -> tuple[StateTensor, ...]:
    """Make the owned constants graph inputs that hold state, in place.

    The bias of a layer whose output is normalised by the batch's statistics stays: its gradient is zero, and an
    optimizer would follow the rounding.
    """
    nodes = {str(node.name): node for node in model.graph}
    state = []
    for entry in owned:
        node = nodes[entry.node]
        value = node.inputs[entry.position]
        if value is None or value.const_value is None or (entry.position == 2 and _is_normalised(node)):
            continue
        initial = np.array(value.const_value.numpy(), np.float32)
        model.graph.initializers.pop(str(value.name), None)
        held = state_input(model.graph, entry.name, initial)
        ir.convenience.replace_all_uses_with(value, held)
        state.append(StateTensor(name=entry.name, role="parameter", initial=initial, value=held))
    return tuple(state)


def _trainable(graph: ir.Graph) -> Iterator[tuple[ir.Node, int, str]]:
    """Node, position of the constant input, and its role."""
    for node in graph:
        if node.op_type in WEIGHTED:
            positions = [(1, "weight"), (2, "bias")]
        elif node.op_type == "MatMul":
            positions = [(0, "weight"), (1, "weight")]
        elif node.op_type == "Add" and any(_made_by(v, "MatMul") for v in node.inputs):
            positions = [(0, "bias"), (1, "bias")]
        else:
            continue
        for position, role in positions:
            value = node.inputs[position] if position < len(node.inputs) else None
            if value is not None and _is_trainable(value):
                yield node, position, role


def _is_trainable(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and value.is_initializer() and tensor.dtype == ir.DataType.FLOAT and tensor.size > 1


def _made_by(value: ir.Value | None, op_type: str) -> bool:
    maker = value.producer() if value is not None else None
    return maker is not None and maker.op_type == op_type


def _is_normalised(node: ir.Node) -> bool:
    """Whether all that reads the node's output is a batch norm with computed statistics, or computes them."""
    readers = [use.node for use in node.outputs[0].uses()]
    norms = [r for r in readers if r.op_type == "BatchNormalization" and r.inputs[3] is not None]
    return any(norm.inputs[3].producer() is not None for norm in norms if norm.inputs[3] is not None) and all(
        reader in norms or reader.op_type == "Moments" for reader in readers
    )
