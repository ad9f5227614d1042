"""Gradients of activation functions.

A piecewise linear function keeps a mask, one bit per element.  Most smooth functions keep their output, not their
input.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import GradientBuilder, gradient
from ttac.passes.differentiate.rules.facts import axis_of, present, rank, refusal
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims

Gradients = tuple[ir.Value | None, ...]


@gradient("Relu")
def relu(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = max(x, 0)   ->   dx = dz where z > 0, from one bit per element."""
    return op.Masked(dz, op.Positive(node.inputs[0]))


@gradient("Clip", broadcasts=True)
def clip(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = min(max(x, low), high)   ->   dx = dz where low < z < high,  dlow = dz where x < low,  dhigh the rest."""
    x, low, high = node.inputs[0], present(node, 1), present(node, 2)
    if low is None and high is None:
        return (dz,)
    dx = op.Masked(dz, op.Between(x, low, high)) if op.wants(0) else None
    dlow = op.Masked(dz, op.Less(x, low)) if op.wants(1) else None
    dhigh = op.Masked(dz, op.Greater(x, high)) if op.wants(2) else None
    return (dx, dlow, dhigh)[: len(node.inputs)]


@gradient("LeakyRelu")
def leaky_relu(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x where x > 0, else alpha*x   ->   dx = dz or alpha*dz."""
    alpha = node.attributes.get_float("alpha", 0.01)
    return op.Add(op.Mul(dz, alpha), op.Masked(op.Mul(dz, 1.0 - alpha), op.Positive(node.inputs[0])))


@gradient("PRelu", broadcasts=True)
def prelu(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> Gradients:
    """z = x where x > 0, else slope*x   ->   dx = dz or slope*dz,  dslope = dz*x where x < 0."""
    x, slope = node.inputs
    right = op.Masked(dz, op.Positive(x))
    left = op.Sub(dz, right)
    return op.Add(right, op.Mul(left, slope)), op.Mul(left, x) if op.wants(1) else None


@gradient("Elu")
def elu(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x where x > 0, else alpha*(e^x - 1)   ->   dx = dz, or dz*(z + alpha)."""
    return _exponential(op, node, dz, 1.0, 1.0, node.attributes.get_float("alpha", 1.0))


@gradient("Selu")
def selu(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = gamma*(x where x > 0, else alpha*(e^x - 1))   ->   dx = gamma*dz, or dz*(z + gamma*alpha)."""
    alpha = node.attributes.get_float("alpha", 1.6732632423543772)
    gamma = node.attributes.get_float("gamma", 1.0507009873554805)
    return _exponential(op, node, dz, gamma, 1.0, gamma * alpha)


@gradient("Celu")
def celu(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x where x > 0, else alpha*(e^(x/alpha) - 1)   ->   dx = dz, or dz*(z/alpha + 1)."""
    return _exponential(op, node, dz, 1.0, 1.0 / node.attributes.get_float("alpha", 1.0), 1.0)


def _exponential(
    op: GradientBuilder, node: ir.Node, dz: ir.Value, right: float, factor: float, offset: float
) -> ir.Value:
    """dz*right where x > 0, else dz*(z*factor + offset)."""
    z = node.outputs[0]
    derivative = op.Add(op.Mul(z, factor) if factor != 1.0 else z, offset)
    above = op.Positive(node.inputs[0])
    return op.Add(op.Masked(op.Mul(dz, right), above), op.Masked(op.Mul(dz, derivative), op.Not(above)))


@gradient("Sigmoid")
def sigmoid(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = 1/(1 + e^-x)   ->   dx = dz*z*(1 - z)."""
    z = node.outputs[0]
    return op.Mul(dz, op.Mul(z, op.Sub(1.0, z)))


@gradient("HardSigmoid")
def hard_sigmoid(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = min(max(alpha*x + beta, 0), 1)   ->   dx = dz*alpha where 0 < z < 1."""
    return op.Masked(op.Mul(dz, node.attributes.get_float("alpha", 0.2)), op.Between(node.outputs[0], 0.0, 1.0))


@gradient("HardSwish")
def hard_swish(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x*h with h = min(max(x/6 + 1/2, 0), 1)   ->   dx = dz*(h + x/6 where -3 < x < 3)."""
    return op.Mul(dz, hard_swish_derivative(op, node.inputs[0]))


def hard_swish_derivative(op: Builder, x: ir.Value | None) -> ir.Value:
    """h + x/6 where -3 < x < 3, with h = min(max(x/6 + 1/2, 0), 1)."""
    h = op.HardSigmoid(x, alpha=1.0 / 6.0, beta=0.5)
    return op.Add(h, op.Masked(op.Mul(x, 1.0 / 6.0), op.Between(x, -3.0, 3.0)))


@gradient("Mish")
def mish(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x*t with t = tanh(softplus x)   ->   dx = dz*(t + x*(1 - t^2)*sigmoid x)."""
    x = node.inputs[0]
    t = op.Tanh(op.Softplus(x))
    return op.Mul(dz, op.Add(t, op.Mul(op.Mul(x, op.Sub(1.0, op.Mul(t, t))), op.Sigmoid(x))))


@gradient("Tanh")
def tanh(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = tanh x   ->   dx = dz*(1 - z^2)."""
    z = node.outputs[0]
    return op.Mul(dz, op.Sub(1.0, op.Mul(z, z)))


@gradient("Softplus")
def softplus(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = log(1 + e^x)   ->   dx = dz*sigmoid x."""
    return op.Mul(dz, op.Sigmoid(node.inputs[0]))


@gradient("Softsign")
def softsign(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x/(1 + |x|)   ->   dx = dz*(1 - |z|)^2."""
    rest = op.Sub(1.0, op.Abs(node.outputs[0]))
    return op.Mul(dz, op.Mul(rest, rest))


@gradient("Gelu")
def gelu(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x*c with c(x) the normal distribution, or its approximation by tanh   ->   dx = dz*(c + x*c')."""
    x = node.inputs[0]
    approximate = node.attributes.get_string("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise refusal(node, f"unknown `approximate` {approximate!r}")
    return op.Mul(dz, op.GeluDerivative(x) if approximate == "none" else tanh_gelu_derivative(op, x))


@gradient("ExactGelu")
def exact_gelu(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x*c with c = (1 + erf u)/2, u = x/sqrt 2   ->   dx = dz*(c + u*e^(-u^2)/sqrt(pi))."""
    return op.Mul(dz, op.GeluDerivative(node.inputs[0]))


def tanh_gelu_derivative(op: Builder, x: ir.Value | None) -> ir.Value:
    """c + x*c' with c = (1 + tanh u)/2, u = k*(x + a*x^3), k = sqrt(2/pi), a = 0.044715."""
    k, a = math.sqrt(2.0 / math.pi), 0.044715
    square = op.Mul(x, x)
    t = op.Tanh(op.Mul(op.Mul(x, op.Add(op.Mul(square, a), 1.0)), k))
    inner = op.Mul(op.Add(op.Mul(square, 3.0 * a), 1.0), 0.5 * k)
    return op.Add(op.Mul(op.Add(t, 1.0), 0.5), op.Mul(x, op.Mul(op.Sub(1.0, op.Mul(t, t)), inner)))


@gradient("Softmax")
def softmax(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = e^x / sum e^x along the axis   ->   dx = z*(dz - sum dz*z)."""
    z = node.outputs[0]
    axis = axis_of(node, -1)
    factors = (_of_attention(z, dz) if axis == rank(z) - 1 else None) or (dz, z)
    return op.Mul(z, op.Sub(dz, op.ReduceSum(op.Mul(*factors), [axis], keepdims=1)))


def _of_attention(z: ir.Value, dz: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Return do and o if dz = do @ v^T comes from o = z @ v alone.

    Then sum dz*z equals sum do*o, over fewer elements (FlashAttention, arXiv:2205.14135, appendix B.4).
    """
    product = dz.producer()
    other = product.inputs[1] if product is not None and product.op_type == "MatMul" else None
    swapped = other.producer() if other is not None else None
    if product is None or swapped is None or swapped.op_type != "Transpose":
        return None
    for node in {use.node for use in z.uses()}:
        if node.op_type == "MatMul" and node.inputs[0] is z and node.inputs[1] is swapped.inputs[0]:
            (o,), do = node.outputs, product.inputs[0]
            if do is not None and dims(do) == dims(o) and _elements(o) < _elements(z):
                return do, o
    return None


def _elements(value: ir.Value) -> int:
    """Return the size of a row: features of a token, or tokens that the attention reads; 0 if symbolic."""
    size = dims(value)[-1]
    return size if isinstance(size, int) else 0


@gradient("LogSoftmax")
def log_softmax(op: GradientBuilder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """z = x - log sum e^x along the axis   ->   dx = dz - e^z * sum dz."""
    return op.Sub(dz, op.Mul(op.Exp(node.outputs[0]), op.ReduceSum(dz, [axis_of(node, -1)], keepdims=1)))
