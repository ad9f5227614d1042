"""The gradient of a norm with the statistics of the batch: one node for the mask, the sums and the input gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.match import array_of
from ttac.passes.graph.shapes import dims, known_dims
from ttac.passes.kernels.linked_graphs import ROOM, LinkedGraphs, Type
from ttac.passes.kernels.mask_bits import is_unpacked
from ttac.passes.kernels.norm_formulas import Expected, InputGradient, Sums, both
from ttac.passes.kernels.norm_forward import MAPS, SAMPLES, Norm, is_again, mask_of, reduced
from ttac.passes.kernels.smooth import smooth_gradient
from ttac.passes.kernels.waits import Waits

STEEP = 1e30
"""Least slope of a HardSigmoid that serves as the mask of a Relu."""


@dataclass(frozen=True, kw_only=True)
class Mask:
    """The product du = dy * act'(u).

    Attributes:
        mask: kept by the forward, a byte an element; None if it is kept in bits, or computed from the norm's input.
        bits: the same, a bit an element.
        bias: of the norm, where the kernel computes the mask.
    """

    node: ir.Node
    dy: ir.Value
    mask: ir.Value | None = None
    bits: ir.Value | None = None
    bias: ir.Value | None = None
    scale: ir.Value | None = None
    activation: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """All parts of the gradient of one norm.

    Attributes:
        input: None where nobody needs the gradient of the norm's input.
        known: the nodes that read du for this norm.
    """

    sums: Sums
    mask: Mask | None
    input: InputGradient | None = None
    known: Sequence[ir.Node]

    @property
    def results(self) -> list[ir.Value]:
        """The values that a node for the gradient may replace: dx, dscale, dbias and du."""
        dx = [self.input.total] if self.input is not None else []
        return [*dx, self.sums.dscale, self.sums.dbias, *([self.sums.du] if self.mask is not None else [])]

    @property
    def more(self) -> ir.Value | None:
        """The further gradient that the node adds."""
        return self.input.more if self.input is not None and not self.input.apart else None

    def wants_du(self, graphs: LinkedGraphs) -> bool:
        """Whether a node that stays reads the product du."""
        others = [reader for reader in graphs.readers(self.sums.du) if reader not in self.known]
        return self.mask is not None and (bool(others) or self.sums.du.is_graph_output())

    def place(self, graphs: LinkedGraphs) -> ir.Node:
        """The node in front of which the gradient is computed; one that adds `more` stands where that is there."""
        if self.input is not None and self.more is not None:
            return _last_of(self.input)
        if self.mask is not None:
            return self.mask.node
        return min(self.sums.readers, key=lambda node: graphs.place(node.outputs[0]))

    def types(self, graphs: LinkedGraphs) -> list[Type | None]:
        """Type and shape of the outputs dx, dscale, dbias and du of a node for the gradient; None for no output."""
        shape = dims(self.sums.norm.x)
        whole, vector = (ir.DataType.FLOAT, shape), (ir.DataType.FLOAT, shape[1:2])
        return [whole if self.input is not None else None, vector, vector, *([whole] if self.wants_du(graphs) else [])]

    def paired(self, made: Sequence[ir.Value]) -> list[tuple[ir.Value, ir.Value]]:
        """The values that a node of these `types` replaces, with its outputs."""
        dx = self.input.total if self.input is not None else None
        old = [dx, self.sums.dscale, self.sums.dbias, self.sums.du]
        return [(value, new) for value, new in zip(old, made, strict=False) if value is not None]


Dot = Callable[[ir.Value | None, Norm, ir.Value], Sequence[ir.Node] | None]
"""Returns the nodes that read du, where a value is the sum of du*x of a norm."""


def fuse_backward(graphs: LinkedGraphs, norms: Sequence[Norm]) -> None:
    """Replace the gradient of every norm that has the expected shape.

    All gradients are found before the first one is replaced, because two norms may share du and dbias.
    """

    def dense_dot(total: ir.Value | None, norm: Norm, du: ir.Value) -> Sequence[ir.Node] | None:
        product = graphs.made_by(_summed(graphs, total), "Mul")
        pairs = [(graphs.source(a), graphs.source(b)) for a, b in both(product)] if product is not None else []
        return [product] if product is not None and (du, graphs.source(norm.x)) in pairs else None

    sums = [found for node in graphs.nodes("Sub") if (found := sums_of(graphs, node, norms, dense_dot)) is not None]
    waits = Waits()
    gradients = [_gradient(graphs, found, waits) for found in sums]
    replace_all(graphs, [pair for gradient in gradients for pair in _insert(graphs, gradient)])


def replace_all(graphs: LinkedGraphs, made: Sequence[tuple[ir.Value, ir.Value]]) -> None:
    """Let the readers of each first value read the second; the first of two replacements counts."""
    replaced: set[ir.Value] = set()
    for old, new in made:
        if old not in replaced:
            graphs.replace(old, new)
            replaced.add(old)


def sums_of(graphs: LinkedGraphs, node: ir.Node, norms: Sequence[Norm], dot: Dot) -> Sums | None:
    """dscale = (dot - mean*dbias)*r, with the difference `node`, dot = sum du*x and dbias = sum du."""
    by_mean: dict[object, Norm] = {norm.mean: norm for norm in norms}
    product = graphs.made_by(node.inputs[1], "Mul")
    if product is None:
        return None
    norm, dbias = next(
        ((by_mean[graphs.source(a)], graphs.source(b)) for a, b in both(product) if graphs.source(a) in by_mean),
        (None, None),
    )
    du = _summed(graphs, dbias)
    if norm is None or dbias is None or du is None:
        return None
    readers, expected = dot(node.inputs[0], norm, du), Expected(graphs, norm)
    scaled = [reader for reader in graphs.readers(node.outputs[0]) if reader.op_type == "Mul"]
    found = next(((r.outputs[0], v) for r in scaled for v in r.inputs if v is not None and expected.is_r(v)), None)
    if found is None or readers is None:
        return None
    dscale, reciprocal = found
    known = [*readers, _first_sum(graphs, dbias)]
    return Sums(norm=norm, du=du, dbias=dbias, dscale=dscale, reciprocal=reciprocal, readers=known)


def _first_sum(graphs: LinkedGraphs, total: ir.Value) -> ir.Node:
    outer = graphs.made_by(total, "ReduceSum")
    inner = graphs.made_by(outer.inputs[0], "ReduceSum") if outer is not None else None
    assert inner is not None
    return inner


def _summed(graphs: LinkedGraphs, total: ir.Value | None) -> ir.Value | None:
    """x [N, C, H, W], where `total` [C] is the sum of its maps over all samples."""
    found = reduced(graphs.source(total), "ReduceSum", "ReduceSum")
    if found is None or found[1:] != (MAPS, SAMPLES):
        return None
    return graphs.source(found[0])


def _gradient(graphs: LinkedGraphs, sums: Sums, waits: Waits) -> Gradient:
    expected, known = Expected(graphs, sums.norm), list(sums.readers)
    found = Gradient(sums=sums, mask=mask_product(graphs, sums), known=known)
    graph = found.place(graphs).graph

    def way(total: ir.Value, more: ir.Value) -> bool | None:
        """Whether `more` needs a result of the node; None where the node is in another graph than the sum."""
        alike = total.graph is graph and known_dims(more) == dims(sums.norm.x)
        return waits.any_of(more, found.results) if alike else None

    for reader in graphs.readers(sums.du):
        if reader.op_type == "BatchNormalization":
            part = expected.input_gradient(sums, reader, way)
            if part is not None:
                found = replace(found, input=part)
                known.append(reader)
    if (more := found.more) is not None:
        waits.add(found.results, more)
    return found


def _insert(graphs: LinkedGraphs, gradient: Gradient) -> list[tuple[ir.Value, ir.Value]]:
    """Insert the node; return the values that it replaces, with its own."""
    sums, mask, norm = gradient.sums, gradient.mask, gradient.sums.norm
    place = gradient.place(graphs)
    assert place.graph is not None
    computed = mask is not None and mask.mask is None and mask.bits is None
    given = gradient.input.scale if gradient.input is not None else None
    scale = local(graphs, place.graph, mask.scale if mask is not None else None, given, norm.scale)
    bias = local(graphs, place.graph, mask.bias) if mask is not None and computed else None
    if scale is None or (computed and bias is None):
        return []
    dy, kept = (mask.dy, mask.mask) if mask is not None else (sums.du, None)
    bits = mask.bits if mask is not None else None
    inputs = [dy, norm.x, scale, bias, norm.mean, norm.variance, kept, None, bits, gradient.more]
    attributes = mask.activation if mask is not None else {"act": "none"}
    made = graphs.insert(place, "NormBackward", inputs, gradient.types(graphs), epsilon=norm.epsilon, **attributes)
    if gradient.input is not None and gradient.input.apart:
        made[0] = _with_more(gradient.input, made[0])
    return gradient.paired(made)


def _with_more(found: InputGradient, dx: ir.Value) -> ir.Value:
    """The sum of dx and the other gradient, in the place of the sum that was found."""
    last = _last_of(found)
    assert last.graph is not None
    with Builder(last.graph, ROOM).at(last.metadata_props.get(LAYER, ""), before=last) as op:
        total = op.Add(dx, found.more)
    total.type, total.shape = dx.type, dx.shape
    return total


def _last_of(found: InputGradient) -> ir.Node:
    """The addition that makes the total."""
    node = found.total.producer()
    assert node is not None
    return node


def local(graphs: LinkedGraphs, graph: ir.Graph, *candidates: ir.Value | None) -> ir.Value | None:
    """The first candidate that `graph` has or can read as an input."""
    for value in candidates:
        if value is not None and (value.graph is graph or graphs.source(value).is_graph_input()):  # type: ignore[union-attr]
            return value
    return None


def mask_product(graphs: LinkedGraphs, sums: Sums) -> Mask | None:
    """The product that makes du, where its factor is the derivative of an activation of this norm alone."""
    node = graphs.made_by(sums.du, "Mul")
    for dy, factor in both(node) if node is not None else []:
        if dy is None or node is None:
            continue
        cast = graphs.made_by(factor, "Cast")
        if cast is not None and sums.norm.mask is not None and graphs.source(cast.inputs[0]) is sums.norm.mask:
            kept = sums.norm.mask
            return Mask(node=node, dy=dy, mask=kept, activation=sums.norm.activation)
        if sums.norm.bits is not None and is_unpacked(graphs, factor, sums.norm.bits):
            return Mask(node=node, dy=dy, bits=sums.norm.bits, activation=sums.norm.activation)
        found = _computed_mask(graphs, sums.norm, factor)
        if found is not None:
            norm, attributes = found
            scale, bias = norm.inputs[1:3]
            return Mask(node=node, dy=dy, bias=bias, scale=scale, activation=attributes)
    smooth = smooth_gradient(graphs, sums.du, lambda found: is_again(graphs, found, sums.norm))
    if smooth is None:
        return None
    last, dy, norm, act = smooth
    scale, bias = norm.inputs[1:3]
    return Mask(node=last, dy=dy, bias=bias, scale=scale, activation={"act": act})


def _computed_mask(graphs: LinkedGraphs, norm: Norm, factor: ir.Value | None) -> tuple[ir.Node, dict[str, Any]] | None:
    """The norm computed again, and its activation, where `factor` is the mask of the activation's derivative."""
    steep = graphs.made_by(factor, "HardSigmoid")
    if steep is not None:
        again = graphs.made_by(steep.inputs[0], "BatchNormalization")
        fits = steep.attributes.get_float("alpha", 0.2) > STEEP and steep.attributes.get_float("beta", 0.5) == 0
        return (again, {"act": "relu"}) if fits and again is not None and is_again(graphs, again, norm) else None
    cast = graphs.made_by(factor, "Cast")
    within = graphs.made_by(cast.inputs[0], "And") if cast is not None else None
    bounds = [graphs.made_by(value, "Greater", "Less") for value in within.inputs] if within is not None else []
    if len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
        return None
    again = graphs.made_by(bounds[0].inputs[0], "BatchNormalization")
    limits = {node.op_type: array_of(node.inputs[1]) for node in bounds if node is not None}
    if again is None or not is_again(graphs, again, norm) or any(a is None or a.size != 1 for a in limits.values()):
        return None
    if set(limits) != {"Greater", "Less"}:
        return None
    attributes = {"act": "clip", "low": float(limits["Greater"]), "high": float(limits["Less"])}  # type: ignore[arg-type]
    return (again, attributes) if mask_of(list(bounds), bounds[0].inputs[0], attributes) is not None else None  # type: ignore[arg-type]
