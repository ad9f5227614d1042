"""Facts about a node for a gradient rule: constants, axes and sizes, and the error of a refusal."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.places import node_place, value_place
from ttac.passes.graph.shapes import dims


def refusal(node: ir.Node, reason: str) -> UnsupportedError:
    """Return the error for a node that the rule of its operator does not cover."""
    return UnsupportedError(
        f"no gradient for `{node.op_type}` here: {reason}",
        where=node_place(node),
        hint="adapt only norms behind this node: `--train SELECTOR` takes site names or patterns (see `ttac inspect`)",
    )


def present(node: ir.Node, position: int) -> ir.Value | None:
    """Return the input at `position`; None if the node omits the input."""
    return node.inputs[position] if position < len(node.inputs) else None


def constant(node: ir.Node, position: int) -> np.ndarray | None:
    """Return the constant array at input `position`; None if the node omits the input.

    Raises UnsupportedError if the input is computed, or an input of the graph.
    """
    value = present(node, position)
    if value is None:
        return None
    tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise refusal(node, f"its input {value_place(value)} is not a constant")
    return tensor.numpy()


def integers(node: ir.Node, position: int) -> list[int] | None:
    """Return the constant integers at input `position`; None if the node omits the input."""
    array = constant(node, position)
    return None if array is None else [int(number) for number in array.reshape(-1)]


def rank(value: ir.Value | None) -> int:
    """Return the number of axes of `value`."""
    return len(dims(value))


def axis_of(node: ir.Node, default: int, value: ir.Value | None = None) -> int:
    """Return the attribute `axis` as an index from the front of `value`, which is the first input by default."""
    return node.attributes.get_int("axis", default) % max(1, rank(value or node.inputs[0]))


def size_along(node: ir.Node, value: ir.Value | None, axis: int) -> int:
    """Return the size of `value` along `axis`.

    Raises UnsupportedError if the size is symbolic: a rule that needs the number cannot work along the batch.
    """
    size = dims(value)[axis]
    if not isinstance(size, int):
        raise refusal(node, f"it works along axis {axis}, whose size `{size}` is known at run time only")
    return size
