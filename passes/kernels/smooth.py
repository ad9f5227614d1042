"""Smooth activations behind a norm, SiLU and HardSwish, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from ttac.passes.differentiate.rules.activations import hard_swish_derivative
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.match import made_by
from ttac.passes.kernels.expected import expected
from ttac.passes.kernels.linked_graphs import LinkedGraphs
from ttac.passes.kernels.terms import Terms

DEPTH = 8
"""Most nodes between the gradient of an activation and the activation's input."""


def smooth_activation(u: ir.Value) -> tuple[ir.Node, str] | None:
    """The node that makes the activation of `u`, and the name of the activation; None where there is none.

    Other nodes may also read `u`: a gradient that keeps standard operators does.
    """
    for use in u.uses():
        if use.node.op_type == "HardSwish":
            return use.node, "hardswish"
        if use.node.op_type == "Mul" and any(
            gate is not None and gate.inputs[0] is u for gate in (made_by(v, "Sigmoid") for v in use.node.inputs)
        ):
            return use.node, "silu"
    return None


def smooth_gradient(
    graphs: LinkedGraphs, du: ir.Value, is_again: Callable[[ir.Node], bool]
) -> tuple[ir.Node, ir.Value, ir.Node, str] | None:
    """The last node of du = dy*act'(u), dy, the norm that makes u, and the name of the activation.

    Args:
        is_again: whether a BatchNormalization makes u.
    """
    last = graphs.made_by(du, "Add", "Mul")
    norms = [node for node in _cone(graphs, last, DEPTH) if node.op_type == "BatchNormalization" and is_again(node)]
    if last is None or not norms:
        return None
    products = [last, *(graphs.made_by(value, "Mul") for value in last.inputs)]
    candidates = [graphs.source(value) for node in products if node is not None for value in node.inputs]
    near = next((node for node in norms if node.graph is last.graph), norms[0])
    for dy in dict.fromkeys(value for value in candidates if value is not None):
        terms = Terms()
        atoms = {**{graphs.source(node.outputs[0]): terms.term("u") for node in norms}, dy: terms.term("dy")}
        found = terms.of(graphs, last.outputs[0], atoms)  # type: ignore[arg-type]
        for act, formula in GRADIENTS.items():
            (wanted,) = expected(terms, dict.fromkeys(("dy", "u"), near.outputs[0]), lambda *of, to=formula: [to(*of)])
            if found == wanted:
                return last, dy, near, act
    return None


def _cone(graphs: LinkedGraphs, node: ir.Node | None, depth: int) -> Iterator[ir.Node]:
    """The nodes from which `node` is computed in `depth` steps."""
    if node is None or not depth or node.domain:
        return
    yield node
    if node.op_type != "BatchNormalization":
        for value in node.inputs:
            source = graphs.source(value)
            yield from _cone(graphs, source.producer() if source is not None else None, depth - 1)


def _silu(op: Builder, dy: ir.Value, u: ir.Value) -> ir.Value:
    """The gradient of u*s, as the rules of Mul and Sigmoid write it."""
    s = op.Sigmoid(u)
    return op.Add(op.Mul(dy, s), op.Mul(op.Mul(dy, u), op.Mul(s, op.Sub(1.0, s))))


def _hard_swish(op: Builder, dy: ir.Value, u: ir.Value) -> ir.Value:
    return op.Mul(dy, hard_swish_derivative(op, u))


GRADIENTS: Mapping[str, Callable[[Builder, ir.Value, ir.Value], ir.Value]] = {"silu": _silu, "hardswish": _hard_swish}
"""Name of an activation -> its gradient, in the operators of `differentiate/rules`."""
