"""One direction of a recurrent node: its inputs, states, weights and gates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import Gradient, GradientBuilder
from ttac.passes.differentiate.rules.facts import present, refusal
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.reshaping import expand
from ttac.passes.graph.scan import Step, Values, scan
from ttac.passes.graph.shapes import dims

BIAS, FIRST = 3, 5
"""Positions of the bias and of the first state among the inputs of a recurrent operator."""
REFUSED = {4: "lengths of the sequences", 7: "weights from the cell to the gates"}
ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
"""Default activations of a direction, the only ones with a gradient here."""


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One direction of a recurrent node, without the axis of directions.

    Attributes:
        node: the node; place: index of the direction; backwards: whether the steps run from the last to the first.
        x: inputs [T, N, I]; before: the state before each step [T, N, H].
        w, r: weights [gates * H, I] and [gates * H, H].
        bias: the bias of `w` and the bias of `r`, [gates * H] each; empty without a bias.
        dy: gradient of the states [T, N, H], None without one; dh: gradient of the last state [N, H].
    """

    node: ir.Node
    place: int
    backwards: bool
    x: ir.Value
    before: ir.Value
    w: ir.Value
    r: ir.Value
    bias: tuple[ir.Value, ...]
    dy: ir.Value | None
    dh: ir.Value


def directions(op: GradientBuilder, node: ir.Node, dy: Gradient, dh: Gradient) -> Iterator[Direction]:
    """Yield each direction of the node; `dy` and `dh` are the gradients of its first two outputs.

    Raises UnsupportedError for a variant without a gradient.
    """
    _refuse_variants(op, node)
    x, w, r = node.inputs[:3]
    assert x is not None and w is not None and r is not None
    states, bias = _states(op, node), present(node, BIAS)
    kind = node.attributes.get_string("direction", "forward")
    for place, backwards in enumerate([False, True] if kind == "bidirectional" else [kind == "reverse"]):
        first, half = first_state(op, node, FIRST, place), int(dims(w)[1])
        last = zeros(op, node) if dh is None else of_direction(op, dh, place, 0)
        yield Direction(
            node=node,
            place=place,
            backwards=backwards,
            x=x,
            before=shifted(op, of_direction(op, states, place, 1), first, backwards=backwards),
            w=of_direction(op, w, place, 0),
            r=of_direction(op, r, place, 0),
            bias=()
            if bias is None
            else tuple(op.Split(of_direction(op, bias, place, 0), [half] * 2, axis=0, outputs=2)),
            dy=None if dy is None else of_direction(op, dy, place, 1),
            dh=last,
        )


def _refuse_variants(op: GradientBuilder, node: ir.Node) -> None:
    usual = ACTIVATIONS[node.op_type]
    given = list(node.attributes.get_strings("activations", ()) or ())
    if any(name != usual[place % len(usual)] for place, name in enumerate(given)):
        raise refusal(node, f"its activations are {', '.join(given)}")
    for name in ("clip", "input_forget", "layout", "activation_alpha", "activation_beta"):
        if name in node.attributes and node.attributes[name].value:
            raise refusal(node, f"it states `{name}`")
    for place, kind in REFUSED.items():
        if present(node, place) is not None:
            raise refusal(node, f"it has {kind}")
    if any(op.wants(place) for place in (1, 2, 3)):
        raise refusal(node, "its weights do not train")


def _states(op: Builder, node: ir.Node) -> ir.Value:
    """Return the states of all steps [T, directions, N, H], which the node computes from now on."""
    y, x, r = node.outputs[0], node.inputs[0], node.inputs[2]
    if not y.name:
        (length, samples, _), (count, _, hidden) = dims(x), dims(r)
        y.name, y.shape = op.fresh(f"{node.name}.states"), ir.Shape([length, count, samples, hidden])
        y.type = ir.TensorType(x.dtype) if x is not None and x.dtype is not None else None
    return y


def of_direction(op: Builder, value: ir.Value, place: int, axis: int) -> ir.Value:
    """Return the part of `value` at `place` of the axis of directions."""
    return op.Squeeze(value, [axis]) if dims(value)[axis] == 1 else op.Gather(value, place, axis=axis)


def first_state(op: Builder, node: ir.Node, position: int, place: int) -> ir.Value:
    """Return the first state [N, H] that the node reads at `position`, zeros by default."""
    value = present(node, position)
    return zeros(op, node) if value is None else of_direction(op, value, place, 0)


def zeros(op: Builder, node: ir.Node) -> ir.Value:
    """Return zeros [N, H]."""
    x, hidden = node.inputs[0], dims(node.inputs[2])[-1]
    assert x is not None and x.dtype is not None
    return expand(op, op.constant(np.zeros((1, 1), x.dtype.numpy())), [dims(x)[1], hidden], x)


def shifted(op: Builder, states: ir.Value, first: ir.Value, *, backwards: bool) -> ir.Value:
    """Return the state before each step, from the states [T, N, H] after the steps and the first state [N, H]."""
    begin = op.Unsqueeze(first, [0])
    if dims(states)[0] == 1:
        return begin
    if backwards:
        return op.Concat(op.Slice(states, [1], [1 << 30], [0]), begin, axis=0, like=states)
    return op.Concat(begin, op.Slice(states, [0], [-1], [0]), axis=0, like=states)


def products(op: Builder, at: Direction) -> tuple[ir.Value, ir.Value]:
    """Return the inputs times `w` and the states before times `r`, with biases, [T, N, gates * H]."""
    x, h = (
        op.MatMul(value, op.Transpose(weights, perm=[1, 0])) for value, weights in ((at.x, at.w), (at.before, at.r))
    )
    return (op.Add(x, at.bias[0]), op.Add(h, at.bias[1])) if at.bias else (x, h)


def split(op: Builder, at: Direction, value: ir.Value) -> tuple[ir.Value, ...]:
    """Return the parts of each gate of `value` [T, N, gates * H]."""
    hidden = int(dims(at.r)[1])
    count = int(dims(at.r)[0]) // hidden
    return tuple(op.Split(value, [hidden] * count, axis=-1, outputs=count)) if count > 1 else (value,)


def of_sigmoid(op: Builder, y: ir.Value) -> ir.Value:
    """Return the derivative y*(1 - y) of a sigmoid with the result y."""
    return op.Mul(y, op.Sub(1.0, y))


def of_tanh(op: Builder, y: ir.Value) -> ir.Value:
    """Return the derivative 1 - y^2 of a hyperbolic tangent with the result y."""
    return op.Sub(1.0, op.Mul(y, y))


def reverse(
    op: Builder, at: Direction, step: Step, states: Values, factors: Values, fixed: Values
) -> tuple[list[ir.Value], ir.Value]:
    """Run `step` from the last step of the direction to the first; return the last states and the stacked result."""
    sequences = [*factors, *([] if at.dy is None else [at.dy])]
    after, (result,) = scan(op, step, states, sequences, fixed, backwards=not at.backwards)
    return after, result


def gradients(
    op: GradientBuilder, node: ir.Node, parts: Iterable[tuple[Direction, list[ir.Value], ir.Value]]
) -> tuple[Gradient, ...]:
    """Return a gradient for each input, from the gradients of the first states and of the gates of each direction."""
    found: list[Gradient] = [None] * max(len(node.inputs), FIRST + 2)
    for at, states, gates in parts:
        dx = op.MatMul(gates, at.w) if op.wants(0) else None
        found[0] = dx if found[0] is None else op.Add(found[0], dx)
        for position, state in enumerate(states, start=FIRST):
            row = op.Unsqueeze(state, [0]) if op.wants(position) else None
            found[position] = row if found[position] is None else op.Concat(found[position], row, axis=0)
    return tuple(found[: len(node.inputs)])
