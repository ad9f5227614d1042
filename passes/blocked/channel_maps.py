"""Affine maps and sums of channels in the blocked layout."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.blocked.layout import Layouts, constant_ints
from ttac.passes.graph.rewire import rename
from ttac.passes.graph.shapes import dims, known_dims

MAPS = [2, 3]
"""The axes of a map."""
AT_ONCE = 64
"""Elements that the engine adds up one after the other; of larger maps, rows first and then their sums."""


def block_norm(at: Layouts, node: ir.Node) -> bool:
    """BatchNormalization in inference form: a depthwise 1x1 Conv whose kernel the graph computes."""
    x, scale, bias, mean, var = node.inputs
    if x is None or scale is None or bias is None or mean is None or var is None:
        return False
    if not at.has(x) or len(node.outputs) != 1:
        return False
    op, channels = at.op, at.filled(int(dims(x)[1]))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    slope: ir.Value = scale
    if not _is(var, 1.0) or epsilon:
        slope = op.Div(scale, op.Sqrt(op.Add(var, float(epsilon))))
    offset: ir.Value = bias if _is(mean, 0.0) else op.Sub(bias, op.Mul(mean, slope))
    slope, offset = at.vector(_sized(slope, x)), at.vector(_sized(offset, x))
    kernel, shape = op.Reshape(slope, [channels, 1, 1, 1]), at.shape(dims(x))
    made = op.internal(
        "Conv", [at.blocked(x), kernel, offset], shape, group=channels, kernel_shape=[1, 1], pads=[0, 0, 0, 0]
    )
    at.replace(node.outputs[0], made)
    return True


def block_scaled(at: Layouts, node: ir.Node) -> bool:
    """Mul of a blocked map and constants of its channels: a depthwise 1x1 Conv."""
    for x, factor in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        if at.has(x) and x is not None and factor is not None and at.is_weight(factor):
            break
    else:
        return False
    sizes, channels = known_dims(factor), at.filled(int(dims(x)[1]))
    if sizes not in ([dims(x)[1], 1, 1], [1, dims(x)[1], 1, 1]) or factor.dtype != ir.DataType.FLOAT:
        return False
    op, shape = at.op, at.shape(dims(x))
    flat = op.Reshape(factor, [-1])
    flat.shape = ir.Shape(dims(x)[1:2])
    kernel = op.Reshape(at.vector(flat), [channels, 1, 1, 1])
    made = op.internal("Conv", [at.blocked(x), kernel], shape, group=channels, kernel_shape=[1, 1], pads=[0, 0, 0, 0])
    at.replace(node.outputs[0], made)
    return True


def _sized(value: ir.Value, x: ir.Value) -> ir.Value:
    """A new vector of x's channels with its shape."""
    if value.shape is None:
        value.shape = ir.Shape(dims(x)[1:2])
    return value


def _is(value: ir.Value | None, number: float) -> bool:
    return value is not None and value.const_value is not None and bool((value.const_value.numpy() == number).all())


def block_mean(at: Layouts, node: ir.Node) -> bool:
    """ReduceMean, ReduceSum and GlobalAveragePool of whole maps."""
    x = node.inputs[0]
    if not at.has(x):
        return False
    if node.op_type == "GlobalAveragePool":
        _put(at, node, pooled(at, at.blocked(x)))
        return True
    if constant_ints(node.inputs[1] if len(node.inputs) > 1 else None) != MAPS:
        return False
    found = pooled(at, at.blocked(x))
    if node.op_type == "ReduceSum":
        found = at.op.Mul(found, float(_elements(x)))
    _put(at, node, found)
    return True


def block_squares(at: Layouts, node: ir.Node) -> bool:
    """The mean of squares: ReduceSumSquare over rows or maps, and the ReduceMean over the other axes that reads it."""
    made = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node.op_type != "ReduceMean" or made is None or made.op_type != "ReduceSumSquare":
        return block_mean(at, node)
    x = made.inputs[0]
    axes, rest = (constant_ints(reader.inputs[1]) for reader in (made, node))
    if not at.has(x) or (axes, rest) not in (([3], [0, 2]), (MAPS, [0])) or node.attributes.get_int("keepdims") != 0:
        return False
    op, blocked = at.op, at.blocked(x)
    mean = op.ReduceMean(pooled(at, op.Mul(blocked, blocked)), [0], keepdims=0)
    count = dims(x)[3] if axes == [3] else _elements(x)
    _put(at, node, op.Mul(mean, float(count)))
    return True


def pooled(at: Layouts, x: ir.Value) -> ir.Value:
    """The blocked x [N, C, H, W] -> means of its maps, [N, C]."""
    op, (batch, channels, height, width) = at.op, dims(x)
    if int(height) * int(width) > AT_ONCE:
        rows = op.Reshape(x, [0, int(channels) * int(height), 1, int(width)])
        means = op.internal("GlobalAveragePool", [rows], [batch, int(channels) * int(height), 1, 1])
        x = op.Reshape(means, [0, int(channels), int(height), 1])
    found = op.Reshape(op.internal("GlobalAveragePool", [x], [batch, channels, 1, 1]), [0, int(channels)])
    found.shape = ir.Shape([batch, channels])
    return found


def _elements(x: ir.Value | None) -> int:
    return int(np.prod([int(size) for size in dims(x)[2:]]))


def _put(at: Layouts, node: ir.Node, found: ir.Value) -> None:
    """Let `found` [N, C] or [C] take the place of the node's output, in its shape."""
    old = node.outputs[0]
    channels, axis = (int(dims(old)[1]), 1) if len(dims(old)) > 1 else (int(dims(old)[0]), 0)
    found = at.cut(found, channels, axis)
    if len(dims(old)) == 4:
        found = at.op.Reshape(found, [0, int(dims(old)[1]), 1, 1])
    found.shape, found.type = old.shape, old.type
    rename(old, found)
