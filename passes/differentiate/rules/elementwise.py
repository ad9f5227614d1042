"""Gradients of arithmetic and of functions applied element by element.

If the derivative is a formula in the output, the rule reads the output, and no residual is kept for the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import GradientBuilder, gradient
from ttac.passes.differentiate.rules.facts import constant, present, refusal

Gradients = tuple[ir.Value | None, ...]


@gradient("Add", broadcasts=True)
def add(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = a + b   ->   da = dz,  db = dz."""
    return dz, dz


@gradient("Sub", broadcasts=True)
def sub(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = a - b   ->   da = dz,  db = -dz."""
    return dz, op.Neg(dz) if op.wants(1) else None


@gradient("Mul", broadcasts=True)
def mul(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = a*b   ->   da = dz*b,  db = dz*a."""
    a, b = node.inputs
    return op.Mul(dz, b) if op.wants(0) else None, op.Mul(dz, a) if op.wants(1) else None


@gradient("Div", broadcasts=True)
def div(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = a/b   ->   da = dz/b,  db = -da*z."""
    da = op.Div(dz, node.inputs[1])
    return da, op.Neg(op.Mul(da, node.outputs[0])) if op.wants(1) else None


@gradient("Pow", broadcasts=True)
def power(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = a^b   ->   da = dz*b*a^(b - 1),  db = dz*z*log a, and 0 where a is 0."""
    a, b = node.inputs
    assert a is not None and a.dtype is not None and b is not None
    exponent = b if b.dtype == a.dtype else op.Cast(b, to=int(a.dtype))
    da = op.Mul(dz, op.Mul(exponent, op.Pow(a, op.Sub(exponent, 1.0)))) if op.wants(0) else None
    if not op.wants(1):
        return (da,)
    zero = op.Cast(op.Equal(a, 0.0), to=int(a.dtype))
    return da, op.Mul(dz, op.Mul(node.outputs[0], op.Log(op.Add(a, zero))))


@gradient("Sqrt")
def sqrt(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = sqrt x   ->   dx = dz/(2*z)."""
    return op.Div(op.Mul(dz, 0.5), node.outputs[0])


@gradient("Exp")
def exp(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = e^x   ->   dx = dz*z."""
    return op.Mul(dz, node.outputs[0])


@gradient("Log")
def log(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = log x   ->   dx = dz/x."""
    return op.Div(dz, node.inputs[0])


@gradient("Neg")
def neg(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = -x   ->   dx = -dz."""
    return op.Neg(dz)


@gradient("Abs")
def absolute(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = |x|   ->   dx = dz*sign x."""
    return op.Mul(dz, op.Sign(node.inputs[0]))


@gradient("Reciprocal")
def reciprocal(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = 1/x   ->   dx = -dz*z^2."""
    z = node.outputs[0]
    return op.Neg(op.Mul(dz, op.Mul(z, z)))


@gradient("Sin")
def sin(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = sin x   ->   dx = dz*cos x."""
    return op.Mul(dz, op.Cos(node.inputs[0]))


@gradient("Cos")
def cos(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = cos x   ->   dx = -dz*sin x."""
    return op.Neg(op.Mul(dz, op.Sin(node.inputs[0])))


@gradient("Erf")
def erf(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = erf x   ->   dx = dz*2/sqrt(pi)*exp(-x^2)."""
    x = node.inputs[0]
    return op.Mul(dz, op.Mul(op.Exp(op.Neg(op.Mul(x, x))), 2.0 / math.sqrt(math.pi)))


@gradient("Sum", broadcasts=True)
def total(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = a + b + ...   ->   dz for each."""
    return (dz,) * len(node.inputs)


@gradient("Mean", broadcasts=True)
def mean(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = (a + b + ...)/n   ->   dz/n for each."""
    return (op.Mul(dz, 1.0 / len(node.inputs)),) * len(node.inputs)


@gradient("Max", broadcasts=True)
def maximum(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = max(a, b, ...)   ->   dz to the largest, the first among equals."""
    return _to_chosen(op, node, dz, op.GreaterOrEqual)


@gradient("Min", broadcasts=True)
def minimum(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = min(a, b, ...)   ->   dz to the smallest, the first among equals."""
    return _to_chosen(op, node, dz, op.LessOrEqual)


def _to_chosen(op: GradientBuilder, node: ir.Node, dz: ir.Value, wins: Callable[..., ir.Value]) -> Gradients:
    """`dz` to the first input that `wins` against all others; two inputs share one mask."""
    if len(node.inputs) == 1:
        return (dz,)
    if len(node.inputs) == 2:
        mask = wins(*node.inputs)
        return op.Masked(dz, mask), op.Masked(dz, op.Not(mask)) if op.wants(1) else None
    gradients, earlier = [], None
    for value in node.inputs:
        equal = op.Equal(value, node.outputs[0])
        gradients.append(op.Masked(dz, equal if earlier is None else op.And(equal, op.Not(earlier))))
        earlier = equal if earlier is None else op.Or(earlier, equal)
    return tuple(gradients)


@gradient("Where", broadcasts=True)
def where(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = a where the condition holds, else b   ->   da = dz where it holds,  db = dz elsewhere."""
    condition = node.inputs[0]
    da = op.Masked(dz, condition) if op.wants(1) else None
    return None, da, op.Masked(dz, op.Not(condition)) if op.wants(2) else None


@gradient("Cast")
def cast(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value | None:
    """z = x in another type   ->   dx = dz in the type of x; None from or to integers, which have no derivative."""
    x = node.inputs[0]
    assert x is not None and x.dtype is not None
    return op.Cast(dz, to=int(x.dtype)) if x.dtype.is_floating_point() else None


@gradient("Identity")
def identity(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x   ->   dx = dz."""
    return dz


@gradient("Dropout")
def dropout(op: GradientBuilder, node: ir.Node, dz: ir.Value, *_: None) -> ir.Value:
    """z = x, the Dropout of inference   ->   dx = dz."""
    if present(node, 2) is not None and np.any(constant(node, 2)):
        raise refusal(node, "its `training_mode` is on; export the model in eval mode")
    return dz
