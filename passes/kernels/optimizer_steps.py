"""Adam's step of a large vector of parameters: one node."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ttac.passes.graph.match import array_of, made_by, only_reader
from ttac.passes.graph.shapes import known_dims
from ttac.passes.kernels.linked_graphs import LinkedGraphs
from ttac.passes.lower.lower import name_nodes

LEAST = 1 << 16
"""Elements of a vector from which on its step is a node: smaller ones take no time."""


@dataclass(frozen=True, kw_only=True)
class Adam:
    """The operands of a step, the values that it makes, and its constants.

    Attributes:
        moments: m and v; `made` are the next ones.
        shares: of the gradient in the next m, and of its square in the next v.
    """

    flat: ir.Value
    gradient: ir.Value
    moments: tuple[ir.Value, ir.Value]
    made: tuple[ir.Value, ir.Value]
    decays: tuple[float, float]
    shares: tuple[float, float]
    rate: ir.Value
    root: ir.Value
    epsilon: float


def fuse_adam(models: Mapping[str, ir.Model]) -> Mapping[str, ir.Model]:
    """Copies of those of `models` in which a large vector makes a step of Adam, with a node for each such step."""
    found: dict[str, ir.Model] = {}
    for name, model in models.items():
        graphs = LinkedGraphs({name: model.clone()})
        steps = [(node, step) for node in graphs.nodes("Sub") if (step := _step(node)) is not None]
        for node, step in steps:
            _insert(graphs, node, step)
        if steps:
            graphs.tidy([str(value.name) for value in model.graph.outputs])
            name_nodes(graphs.models[name])
            found |= graphs.models
    return found


def _step(node: ir.Node) -> Adam | None:
    """The step p - m'/(sqrt(v')/root + epsilon)*rate that `node` ends, of at least `LEAST` elements."""
    sizes = known_dims(node.outputs[0])
    if len(sizes) != 1 or not isinstance(sizes[0], int) or sizes[0] < LEAST:
        return None
    moved = _scaled(node.inputs[1])
    ratio = made_by(moved[0], "Div") if moved is not None else None
    below = _shifted(ratio.inputs[1]) if ratio is not None else None
    scaled = made_by(below[0], "Div") if below is not None else None
    square = made_by(scaled.inputs[0], "Sqrt") if scaled is not None else None
    if ratio is None or moved is None or below is None or scaled is None or square is None:
        return None
    mean, squares = _average(ratio.inputs[0]), _average(square.inputs[0])
    flat, rate, root = node.inputs[0], moved[1], scaled.inputs[1]
    if mean is None or squares is None or flat is None or root is None or math.prod(known_dims(root) or [1]) != 1:
        return None
    gradient = made_by(squares.new, "Mul")
    if gradient is None or list(gradient.inputs) != [mean.new, mean.new]:
        return None
    return Adam(
        flat=flat,
        gradient=mean.new,
        moments=(mean.old, squares.old),
        made=(mean.made, squares.made),
        decays=(mean.decay, squares.decay),
        shares=(mean.share, squares.share),
        rate=rate,
        root=root,
        epsilon=below[1],
    )


@dataclass(frozen=True, kw_only=True)
class _Average:
    """made = old*decay + new*share."""

    made: ir.Value
    old: ir.Value
    new: ir.Value
    decay: float
    share: float


def _average(value: ir.Value | None) -> _Average | None:
    total = made_by(value, "Add")
    terms = [_times(term) for term in total.inputs] if total is not None else []
    if value is None or len(terms) != 2 or terms[0] is None or terms[1] is None:
        return None
    (old, decay), (new, share) = terms  # type: ignore[misc]
    return _Average(made=value, old=old, new=new, decay=decay, share=share)


def _times(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """x and the number c of x*c."""
    return _with_number(made_by(value, "Mul"))


def _shifted(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """x and the number c of x + c."""
    return _with_number(made_by(value, "Add"))


def _with_number(node: ir.Node | None) -> tuple[ir.Value, float] | None:
    number = array_of(node.inputs[1]) if node is not None else None
    if node is None or number is None or number.size != 1 or node.inputs[0] is None:
        return None
    return node.inputs[0], float(number.reshape(-1)[0])


def _scaled(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """The two operands of a Mul, of which the second is a scalar."""
    node = made_by(value, "Mul")
    if node is None or node.inputs[0] is None or node.inputs[1] is None or known_dims(node.inputs[1]):
        return None
    return node.inputs[0], node.inputs[1]


def _insert(graphs: LinkedGraphs, node: ir.Node, step: Adam) -> None:
    """One node; a single parameter is read and written in its own shape, because a Reshape would copy it."""
    w, g = _unshaped(step.flat), _unshaped(step.gradient)
    end = _end(node) if w is not step.flat else node.outputs[0]
    flat = (ir.DataType.FLOAT, known_dims(step.flat))
    made = graphs.insert(
        node,
        "AdamStep",
        [w if end is not node.outputs[0] else step.flat, g, *step.moments, step.rate, step.root],
        [(ir.DataType.FLOAT, known_dims(end)), flat, flat],
        decay1=step.decays[0],
        decay2=step.decays[1],
        share1=step.shares[0],
        share2=step.shares[1],
        epsilon=step.epsilon,
    )
    for old, new in zip((end, *step.made), made, strict=True):
        graphs.replace(old, new)


def _unshaped(value: ir.Value) -> ir.Value:
    node = made_by(value, "Reshape")
    return node.inputs[0] if node is not None and node.inputs[0] is not None else value


def _end(node: ir.Node) -> ir.Value:
    """The parameter behind a Split in one part and a Reshape; the vector itself otherwise."""
    value = node.outputs[0]
    for op_type in ("Split", "Reshape"):
        reader = only_reader(value, op_type)
        if reader is None or len(reader.outputs) != 1:
            return node.outputs[0]
        value = reader.outputs[0]
    return value
