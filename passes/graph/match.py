"""Match small patterns: the producer of a value, its only reader, the constant operand of a node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Return the node that produces `value`, if its operator is one of `op_types`; else None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in op_types else None


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """Return the constant behind `value`; None if the value is computed, or an input of the graph."""
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def with_constant(node: ir.Node | None) -> tuple[ir.Value, np.ndarray] | None:
    """Return the computed and the constant operand of a node with two operands, in either order; else None."""
    if node is None or len(node.inputs) != 2:
        return None
    for value, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        array = array_of(other)
        if value is not None and value.const_value is None and array is not None:
            return value, array
    return None


def only_reader(value: ir.Value, *op_types: str) -> ir.Node | None:
    """Return the single reader of `value` if its operator is one of `op_types`.

    None if there are several readers, another operator, or if `value` is an output of the graph.
    """
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    return node if node.op_type in op_types else None
