"""GELU and its gradient: one node each, and the gradient reads the activation's input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from ttac.passes.differentiate.rules.activations import tanh_gelu_derivative
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims, known_dims
from ttac.passes.kernels.expected import expected
from ttac.passes.kernels.linked_graphs import LinkedGraphs
from ttac.passes.kernels.norm_backward import replace_all
from ttac.passes.kernels.terms import Terms

NAMES = {"none": "gelu", "tanh": "tanhgelu"}
"""Attribute `approximate` of Gelu -> the activation of the library."""
FORMULA = frozenset("Add Sub Mul Div Neg Exp Erf Tanh HardSigmoid".split())
"""Operators in the formulas of GELU and of its derivatives.  The comparison stops at others, such as convolutions: in a
deep graph it would exceed the depth of recursion."""


def fuse_gelus(graphs: LinkedGraphs) -> None:
    """Replace the gradient dy*act'(x) of every GELU, and the GELU of the same x."""
    replaced: list[tuple[ir.Value, ir.Value]] = []
    inputs: set[ir.Value | None] = set()
    for node in list(graphs.nodes("Mul")):
        for dy, slope in zip(node.inputs, reversed(node.inputs), strict=True):
            if (found := _argument(graphs, slope)) is not None and dy is not None:
                x, act = found
                made = graphs.insert(node, "ActivationBackward", [dy, x], [(ir.DataType.FLOAT, dims(x))], act=act)
                replaced.append((node.outputs[0], made[0]))
                inputs.add(graphs.source(x))
                break
    for node in list(graphs.nodes("Gelu", "Mul")):
        if (found := _gelu(graphs, node)) is not None and graphs.source(found[0]) in inputs:
            x, act = found
            made = graphs.insert(node, "ActivationForward", [x], [(ir.DataType.FLOAT, dims(x))], act=act)
            replaced.append((node.outputs[0], made[0]))
    replace_all(graphs, replaced)


def _gelu(graphs: LinkedGraphs, node: ir.Node) -> tuple[ir.Value, str] | None:
    """x and the activation, where `node` is the last one of a GELU of x in float32."""
    if node.op_type == "Gelu":
        x, act = node.inputs[0], NAMES[node.attributes.get_string("approximate", "none")]
        return (x, act) if x is not None and x.dtype == ir.DataType.FLOAT else None
    for value in node.inputs:
        x = _of_erf(graphs, value)
        if x is not None and _is(graphs, node.outputs[0], x, lambda op, x: op.ExactGelu(x)):
            return x, "gelu"
    return None


def _argument(graphs: LinkedGraphs, slope: ir.Value | None) -> tuple[ir.Value, str] | None:
    """x and the activation, where `slope` is the derivative of a GELU at x in float32."""
    for x, act in _candidates(graphs, slope):
        if (
            known_dims(x) == known_dims(slope) != []
            and x.dtype == ir.DataType.FLOAT
            and _is(graphs, slope, x, DERIVATIVES[act])
        ):
            return x, act
    return None


def _candidates(graphs: LinkedGraphs, slope: ir.Value | None) -> Iterator[tuple[ir.Value, str]]:
    total = graphs.made_by(slope, "Add")
    for value in total.inputs if total is not None else []:
        if (x := _of_erf(graphs, value)) is not None:
            yield x, "gelu"
        product = graphs.made_by(value, "Mul")
        yield from ((x, "tanhgelu") for x in (product.inputs if product is not None else []) if x is not None)


def _of_erf(graphs: LinkedGraphs, value: ir.Value | None) -> ir.Value | None:
    """x, where `value` is the normal distribution at x."""
    for op_type in ("HardSigmoid", "Erf", "Mul"):
        node = graphs.made_by(value, op_type)
        value = node.inputs[0] if node is not None else None
    return value


def _is(graphs: LinkedGraphs, value: ir.Value | None, x: ir.Value, formula: Callable[..., ir.Value]) -> bool:
    terms = Terms(FORMULA)
    (wanted,) = expected(terms, {"x": x}, lambda op, x: [formula(op, x)])
    source = graphs.source(x)
    assert source is not None
    return terms.of(graphs, value, {source: terms.term("x")}) == wanted


DERIVATIVES: Mapping[str, Callable[[Builder, ir.Value], ir.Value]] = {
    "gelu": lambda op, x: op.GeluDerivative(x),
    "tanhgelu": tanh_gelu_derivative,
}
"""Name of an activation -> its derivative, in the operators of `differentiate/rules`."""
