"""Find the exact GELU that exporters write with Erf, so that its gradient is one formula of nine passes over x.

Differentiated operator by operator, the GELU costs fourteen passes and keeps one more tensor.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import composite, like
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.match import array_of, made_by, only_reader

ROOM = "gelus"


@composite("ExactGelu", like(0))
def exact_gelu(op: Builder, node: ir.Node) -> ir.Value:
    """x -> x*c with c = (1 + erf(x/sqrt 2))/2, in the operators of its derivative: engines run the common ones once."""
    x = node.inputs[0]
    return op.Mul(x, _normal(op, op.Mul(x, math.sqrt(0.5))))


@composite("GeluDerivative", like(0))
def gelu_derivative(op: Builder, node: ir.Node) -> ir.Value:
    """x -> c + u*e^(-u^2)/sqrt(pi), the derivative of x*c, with u = x/sqrt 2 and c = (1 + erf u)/2.

    It is one operator so that it can run between x and x*c. With the density first, at most four tensors of x's size
    are alive. A quotient needs no negative power. Where e^(u^2) overflows, the quotient is 0, its correct limit.
    """
    u = op.Mul(node.inputs[0], math.sqrt(0.5))
    density = op.Mul(op.Div(u, op.Exp(op.Mul(u, u))), 1.0 / math.sqrt(math.pi))
    return op.Add(_normal(op, u), density)


def _normal(op: Builder, u: ir.Value) -> ir.Value:
    """(1 + erf u)/2: HardSigmoid halves and shifts in one pass.

    Erf never leaves the range to which HardSigmoid clips.
    """
    return op.HardSigmoid(op.Erf(u), alpha=0.5, beta=0.5)


def gather_gelus(model: ir.Model) -> int:
    """Replace each x*(1 + erf(x/sqrt 2))/2 of `model` by one ttac operator, in place.

    Return the number of replacements.
    """
    op, count = Builder(model.graph, ROOM, model.opset_imports[""]), 0
    for erf in [node for node in model.graph if node.op_type == "Erf"]:
        gelu = _gelu(erf)
        if gelu is None:
            continue
        x, last = gelu
        with op.at(erf.metadata_props.get(LAYER, ""), before=last):
            new = op.ExactGelu(x)
        old = last.outputs[0]
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name, count = f"{name}.spelled", name, count + 1
        _remove(last)
    return count


def _remove(node: ir.Node) -> None:
    """Remove `node`, which has no reader any more, and every node that only it read."""
    pending = [node]
    while pending:
        unused = pending.pop()
        if unused.graph is None or any(value.uses() or value.is_graph_output() for value in unused.outputs):
            continue
        pending += [maker for value in unused.inputs if value is not None and (maker := value.producer()) is not None]
        unused.graph.remove(unused, safe=True)


def _gelu(erf: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    """Return x and the last node of a GELU around `erf`; its factors x, 1/2 and 1 + erf may come in any order."""
    x = _times(erf.inputs[0], math.sqrt(0.5))
    total = only_reader(erf.outputs[0], "Add")
    if x is None or total is None or not any(_is(value, 1.0) for value in total.inputs):
        return None
    halved = multiplied = False
    node = total
    while not (halved and multiplied):
        product = only_reader(node.outputs[0], "Mul")
        if product is None:
            return None
        other = product.inputs[1] if product.inputs[0] is node.outputs[0] else product.inputs[0]
        if not halved and _is(other, 0.5):
            halved = True
        elif not multiplied and other is x:
            multiplied = True
        elif not halved and not multiplied and _times(other, 0.5) is x:
            halved = multiplied = True
        else:
            return None
        node = product
    return x, node


def _times(value: ir.Value | None, factor: float) -> ir.Value | None:
    """Return x where `value` is x times the constant `factor`."""
    node = made_by(value, "Mul", "Div")
    if node is None:
        return None
    first, second = node.inputs
    if node.op_type == "Div":
        return first if _is(second, 1.0 / factor) else None
    return first if _is(second, factor) else second if _is(first, factor) else None


def _is(value: ir.Value | None, number: float) -> bool:
    array = array_of(value)
    return array is not None and array.size == 1 and math.isclose(float(array.reshape(-1)[0]), number, rel_tol=1e-6)
