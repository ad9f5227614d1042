"""Follow an axis through operators that move or keep axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.graph.shapes import dims

# Operators that only move values: the scores before a Softmax can be moved in the same way.
MOVES = frozenset("Flatten Reshape Squeeze Transpose Unsqueeze".split())
# Operators that keep the place of every axis of their first input.
STAYS = frozenset(
    "Add AveragePool BatchNormalization Cast Clip DepthToSpace Div Elu Gelu HardSigmoid HardSwish LeakyRelu LogSoftmax "
    "InstanceNormalization LayerNormalization MaxPool Mul PRelu Pad Relu Resize Sigmoid Slice Softmax Softplus Sub "
    "Tanh".split()
)


def feature_axis(value: ir.Value | None) -> tuple[bool, int | None]:
    """Return whether the features of the last linear layer can be followed to `value`, and their axis in `value`.

    The axis is None if it is unclear, or if the operators squeeze a single feature away.
    """
    followers: list[ir.Node] = []
    node = None if value is None else value.producer()
    while node is not None and node.op_type in MOVES | STAYS:
        followers.append(node)
        node = max((v.producer() for v in node.inputs[:2] if v is not None), key=lambda maker: maker is not None)
    axis = None if node is None else _own_axis(node)
    for later in reversed([other for other in followers if other.op_type in MOVES]):
        if axis is None:
            break
        single = dims(later.inputs[0])[axis] == 1
        axis = moved(later, axis)
        if axis is None and single:
            return True, None
    return axis is not None, axis


def _own_axis(node: ir.Node) -> int | None:
    """Return the axis of the features in the output of a linear layer; None for any other operator."""
    if node.op_type in ("Conv", "ConvInteger", "ConvTranspose", "Gemm"):
        return 1
    if node.op_type in ("MatMul", "MatMulInteger") and any(
        value is not None and value.const_value is not None for value in node.inputs[:2]
    ):
        first = node.inputs[0]
        return len(dims(node.outputs[0])) - (1 if first is None or first.const_value is None else 2)
    return None


def moved(node: ir.Node, axis: int | None) -> int | None:
    """Return the place of an input axis in the output of a `MOVES` node; None if the node splits or merges it."""
    if axis is None:
        return None
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if node.op_type == "Transpose":
        order = list(node.attributes.get_ints("perm", ()) or range(len(before))[::-1])
        return order.index(axis)
    rest = _elements(before[axis + 1 :])
    same = [i for i, size in enumerate(after) if size == before[axis] and _elements(after[i + 1 :]) == rest]
    return same[0] if len(same) == 1 and rest is not None else None


def _elements(sizes: Sequence[int | str]) -> int | None:
    """Return the product of the sizes; None if a size is symbolic."""
    return math.prod(int(size) for size in sizes) if all(isinstance(size, int) for size in sizes) else None
