"""Reverse-mode differentiation of a graph: one rule per operator, one walk.

A rule is calculus only: from `(op, node, *dy)` to one gradient for each input, or None.  The walk selects the nodes,
adds the contributions to a gradient, and undoes broadcasts.  The walk reports all operators without a rule at once.  A
value without a derivative is absent, never a tensor of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER, SEED
from ttac.passes.graph.places import node_place
from ttac.passes.graph.rewire import initializer
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.waists import ROUNDED
from ttac.passes.operators.stop_gradient import DETACHED

Gradient = ir.Value | None
RuleFunction = Callable[..., Gradient | tuple[Gradient, ...]]


@dataclass(frozen=True)
class Rule:
    """The gradient of one operator. `broadcasts`: the walk sums each result down to its input's shape."""

    function: RuleFunction
    broadcasts: bool = False


RULES: dict[str, Rule] = {}


def gradient(op_type: str, *, broadcasts: bool = False) -> Callable[[RuleFunction], RuleFunction]:
    """Register the decorated function as the gradient rule of `op_type` (ONNX or ttac vocabulary).

    The rule gets the builder, the forward node and one gradient per output, or None for an output without a gradient.
    `op.wants(i)` is True if input `i` needs a gradient, so that a rule can leave out an expensive gradient.
    """

    def register(function: RuleFunction) -> RuleFunction:
        RULES[op_type] = Rule(function, broadcasts)
        return function

    return register


class GradientBuilder(Builder):
    """A Builder that knows which inputs of the current node need a gradient."""

    wanted: frozenset[int] = frozenset()

    def wants(self, position: int) -> bool:
        """Whether the gradient of the node's input at `position` is needed."""
        return position in self.wanted


def differentiate(
    graph: ir.Graph, loss: ir.Value, wrt: Sequence[ir.Value], opset: int = 18, room: str = "autodiff"
) -> list[Gradient]:
    """Append the gradients of the scalar `loss` to `graph`; return one Value per entry of `wrt`, None if independent.

    Raises UnsupportedError with the name of every node on the path without a rule.
    """
    path = nodes_between(graph, wrt, loss)
    refuse_missing_rules(path)
    active = {id(value) for value in wrt} | {id(v) for node in path for v in node.outputs}
    op = GradientBuilder(graph, room, opset)
    gradients: dict[int, ir.Value] = {id(loss): _seed(graph, loss)}
    for node in reversed(path):
        dys = [gradients.get(id(value)) for value in node.outputs]
        if all(dy is None for dy in dys):
            continue
        op.wanted = frozenset(i for i, v in enumerate(node.inputs) if v is not None and id(v) in active)
        with op.at(node.metadata_props.get(LAYER, "") or str(node.name)):
            _accumulate(op, node, _apply(op, node, dys), gradients)
    return [gradients.get(id(value)) for value in wrt]


def nodes_between(
    graph: ir.Graph, sources: Sequence[ir.Value], sink: ir.Value, *, detached: bool = False
) -> list[ir.Node]:
    """Return the nodes on a differentiable path from `sources` to `sink`, in graph order.

    With `detached`, a path may lead through values whose gradient stops, and through numbers of 8 bits.
    """
    below = {id(value) for value in sources}
    reached = []
    for node in graph:
        if node.op_type == DETACHED and not detached:
            continue
        if any(v is not None and id(v) in below for v in node.inputs):
            made = [v for v in node.outputs if v.dtype is None or v.dtype.is_floating_point()]
            made += [v for v in node.outputs if detached and v.dtype in ROUNDED]
            below.update(id(v) for v in made)
            if made:
                reached.append(node)
    above = {id(sink)}
    path = []
    for node in reversed(reached):
        if any(id(v) in above for v in node.outputs):
            above.update(id(v) for v in node.inputs if v is not None and id(v) in below)
            path.append(node)
    return path[::-1]


def refuse_missing_rules(path: Sequence[ir.Node]) -> None:
    """Raise UnsupportedError that names all nodes of `path` without a gradient rule."""
    missing = [node for node in path if node.op_type not in RULES]
    if missing:
        kinds = sorted({node.op_type for node in missing})
        raise UnsupportedError(
            f"no gradient for {', '.join(f'`{kind}`' for kind in kinds)}",
            where="\n     ".join(node_place(node) for node in missing),
            hint="take a method that needs no gradient (`ttac inspect` lists those that fit), or adapt only norms "
            "behind these nodes, if there are any: `--train SELECTOR` takes names or patterns",
        )


def _apply(op: GradientBuilder, node: ir.Node, dys: list[Gradient]) -> tuple[Gradient, ...]:
    rule = RULES[node.op_type]
    result = rule.function(op, node, *dys)
    result = result if isinstance(result, tuple) else (result,)
    if len(result) > len(node.inputs):
        raise AssertionError(f"the rule of `{node.op_type}` gave {len(result)} gradients for {len(node.inputs)} inputs")
    if not rule.broadcasts:
        return result
    return tuple(
        unbroadcast(op, dx, value) if dx is not None and value is not None and op.wants(position) else None
        for position, (dx, value) in enumerate(zip(result, node.inputs, strict=False))
    )


def _accumulate(
    op: GradientBuilder, node: ir.Node, results: tuple[Gradient, ...], gradients: dict[int, ir.Value]
) -> None:
    for position, (value, dx) in enumerate(zip(node.inputs, results, strict=False)):
        if value is None or dx is None or not op.wants(position):
            continue
        _refuse_other_shape(node, value, dx)
        earlier = gradients.get(id(value))
        gradients[id(value)] = dx if earlier is None else op.Add(earlier, dx, name=f"{value.name}.grad")


def unbroadcast(op: Builder, dy: ir.Value, value: ir.Value) -> ir.Value:
    """Sum `dy` over the axes along which `value` was broadcast, so that it has the shape of `value`."""
    have, want = dims(dy), dims(value)
    lead = len(have) - len(want)
    axes = [i for i, size in enumerate(have) if i < lead or (want[i - lead] == 1 and size != 1)]
    if axes:
        dy = op.ReduceSum(dy, axes, keepdims=1)
    return op.Squeeze(dy, list(range(lead))) if lead else dy


def _refuse_other_shape(node: ir.Node, value: ir.Value, dx: ir.Value) -> None:
    if dims(value) != dims(dx):
        rule = f"the rule of `{node.op_type}` ({node_place(node)})"
        raise AssertionError(f"{rule} gave shape {dx.shape} for `{value.name}` of {value.shape}")


def _seed(graph: ir.Graph, loss: ir.Value) -> ir.Value:
    """Return the gradient 1 of the loss by itself, an initializer; the nodes that depend on it form the backward."""
    if loss.shape is None or len(loss.shape) or loss.dtype is None:
        raise AssertionError(f"the loss `{loss.name}` is not a scalar but {loss.shape}")
    seed = initializer(graph, f"{loss.name}.grad", np.ones((), loss.dtype.numpy()))
    seed.metadata_props[SEED] = "true"
    return seed
