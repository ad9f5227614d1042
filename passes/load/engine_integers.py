"""Write integer operators (QLinear*) as float operators between DequantizeLinear and QuantizeLinear.

The room `quantize` lifts this form.  Products of integers with dynamic scales become standard integer operators.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ttac.passes.load.engine_operators import Writer, given, unfused, without


def dequantized(op: Writer, node: ir.Node, position: int) -> ir.Value:
    """Return the floats of the integers at `position`, whose scale and zero point are the next two inputs."""
    return op("DequantizeLinear", *(given(node, place) for place in range(position, position + 3)))


def requantized(op: Writer, node: ir.Node, y: ir.Value, position: int) -> list[ir.Value | None]:
    """Return `y` as integers, with the scale and zero point at `position`."""
    return [op("QuantizeLinear", y, given(node, position), given(node, position + 1))]


@unfused("QLinearAdd", "QLinearMul")
def _binary(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    y = op(node.op_type.removeprefix("QLinear"), dequantized(op, node, 0), dequantized(op, node, 3))
    return requantized(op, node, y, 6)


@unfused("QLinearSigmoid", "QLinearLeakyRelu")
def _unary(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    y = op(node.op_type.removeprefix("QLinear"), dequantized(op, node, 0), **without(node))
    return requantized(op, node, y, 3)


@unfused("QLinearSoftmax")
def _softmax(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """Softmax over one axis, as since opset 13; before, Softmax was over an axis and all behind it."""
    if node.attributes.get_int("opset", 0) < 13 or op.opset < 13:
        return None
    return requantized(op, node, op("Softmax", dequantized(op, node, 0), **without(node, "opset")), 3)


@unfused("QLinearWhere")
def _where(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    return requantized(op, node, op("Where", given(node, 0), dequantized(op, node, 1), dequantized(op, node, 4)), 7)


@unfused("QLinearGlobalAveragePool", "QLinearAveragePool")
def _pool(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    if node.attributes.get_int("channels_last", 0):
        return None
    y = op(node.op_type.removeprefix("QLinear"), dequantized(op, node, 0), **without(node, "channels_last"))
    return requantized(op, node, y, 3)


@unfused("QLinearConcat")
def _concat(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    parts = [dequantized(op, node, place) for place in range(2, len(node.inputs), 3)]
    return requantized(op, node, op("Concat", *parts, **without(node)), 0)


@unfused("QLinearConv")
def _convolution(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = x * w + b; a bias of int32 is in steps of the scales of x and of w."""
    kernel, known, shift = _along(op, [given(node, place) for place in (3, 4, 5)], 0), *_shift(node, 8)
    if kernel is None or not known:
        return None
    return requantized(op, node, op("Conv", dequantized(op, node, 0), kernel, shift, **without(node)), 6)


@unfused("QGemm")
def _gemm(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = a b + c, with floats as the result where no scale of y is given."""
    is_turned = node.attributes.get_int("transB", 0)
    b = _along(op, [given(node, place) for place in (3, 4, 5)], 0 if is_turned else 1)
    known, shift = _shift(node, 6)
    if b is None or not known or node.attributes.get_float("alpha", 1.0) != 1:
        return None
    y = op("Gemm", dequantized(op, node, 0), b, shift, **without(node, "alpha"))
    return [y] if given(node, 7) is None else requantized(op, node, y, 7)


@unfused("QLinearMatMul")
def _product(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = a b, where the scale of `a` is one number, and that of b one number or one for each column."""
    first, second = (_held(given(node, place)) for place in (1, 4))
    if first is None or first.size > 1 or second is None or second.ndim > 1:
        return None
    b = _along(op, [given(node, place) for place in (3, 4, 5)], -1)
    return None if b is None else requantized(op, node, op("MatMul", dequantized(op, node, 0), b), 6)


def _shift(node: ir.Node, position: int) -> tuple[bool, np.ndarray | None]:
    """Return whether the bias at `position` is known, and its floats: its steps are those of the two operands."""
    bias, scales = given(node, position), [_held(given(node, place)) for place in (1, 4)]
    if bias is None:
        return True, None
    steps, first, second = _held(bias), *scales
    if steps is None or first is None or second is None:
        return False, None
    return True, (steps * first.astype(np.float64) * second).astype(np.float32)


def _held(value: ir.Value | None) -> np.ndarray | None:
    """Return the numbers of a constant; None for a computed value."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _along(op: Writer, triple: Sequence[ir.Value | None], axis: int) -> ir.Value | None:
    """Return the floats of integers with one scale, or one for each place along `axis`; None where no opset has it."""
    scale = _held(triple[1])
    if scale is None or (scale.size > 1 and op.opset < 13):
        return None
    return op("DequantizeLinear", *triple, **({"axis": axis} if scale.size > 1 else {}))


@unfused("DynamicQuantizeMatMul")
def _dynamic(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = a b + c, where a is rounded to 8 bits with a scale of its own range."""
    a, b, scale, zero, bias = (given(node, place) for place in range(5))
    rounded, range_, middle = op.several("DynamicQuantizeLinear", 3, a)
    product = op("Cast", op("MatMulInteger", rounded, b, middle, zero), to=1)
    y = op("Mul", product, op("Mul", range_, scale))
    return [y if bias is None else op("Add", y, bias)]


@unfused("MatMulIntegerToFloat")
def _integer(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = a b * (scale of a) * (scale of b) + c."""
    a, b, a_scale, b_scale, a_zero, b_zero, bias = (given(node, place) for place in range(7))
    product = op("Cast", op("MatMulInteger", a, b, a_zero, b_zero), to=1)
    y = op("Mul", product, op("Mul", a_scale, b_scale))
    return [y if bias is None else op("Add", y, bias)]
