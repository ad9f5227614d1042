"""Layer norms over the last axis: one node for the forward, one node for the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.match import array_of
from ttac.passes.graph.shapes import dims
from ttac.passes.kernels.expected import expected
from ttac.passes.kernels.linked_graphs import LinkedGraphs, Type
from ttac.passes.kernels.norm_backward import local, replace_all
from ttac.passes.kernels.terms import Terms


@dataclass(frozen=True, kw_only=True)
class LayerGradient:
    """The gradient of one layer norm, as values of the plain graphs.

    Attributes:
        norm: the LayerNormalization of the forward.
        product: the node that makes dy * xhat, in whose graph all operands are.
        dx: None where nobody needs it; else the gradient alone.
        summed: dx plus the gradient of a residual; None without a residual.
        more: the gradient of the residual.
    """

    norm: ir.Node
    product: ir.Node
    dy: ir.Value
    scale: ir.Value
    dx: ir.Value | None
    dscale: ir.Value | None
    dbias: ir.Value | None
    summed: ir.Value | None
    more: ir.Value | None


def fuse_layers(graphs: LinkedGraphs) -> None:
    """Replace every layer norm that has a gradient of the expected shape, and the gradient.

    All gradients are found before the first one is replaced: the gradients of residuals are chains of them.
    """
    norms: dict[object, ir.Node] = {}
    for node in graphs.nodes("LayerNormalization"):
        if _is_forward(node):
            norms.setdefault(_key(graphs, node), node)
    found = [
        gradient
        for node in graphs.nodes("LayerNormalization")
        if _is_standardized(node) and (norm := norms.get(_key(graphs, node))) is not None
        for gradient in _gradients(graphs, node, norm)
    ]
    statistics: dict[ir.Node, list[ir.Value]] = {}
    for gradient in found:
        if gradient.norm not in statistics:
            statistics[gradient.norm] = _replace_forward(graphs, gradient.norm)
    replace_all(graphs, [pair for each in found for pair in _insert(graphs, each, statistics[each.norm])])


def _key(graphs: LinkedGraphs, node: ir.Node) -> tuple[object, float]:
    return graphs.key(node.inputs[0]), node.attributes.get_float("epsilon", 1e-5)


def _is_last_axis(node: ir.Node) -> bool:
    x = node.inputs[0]
    rank = len(dims(x))
    return (
        x is not None
        and x.dtype == ir.DataType.FLOAT
        and rank > 1
        and isinstance(dims(x)[-1], int)
        and node.attributes.get_int("axis", -1) in (-1, rank - 1)
    )


def _is_forward(node: ir.Node) -> bool:
    """Whether `node` is a layer norm over the last axis with a bias, of which the result alone is read."""
    scales = [dims(value) for value in node.inputs[1:3] if value is not None]
    vectors = scales == [dims(node.inputs[0])[-1:]] * 2
    return _is_last_axis(node) and vectors and len(node.outputs) == 1 and not _is_standardized(node)


def _is_standardized(node: ir.Node) -> bool:
    """Whether `node` gives xhat, and r as its third output, as the rule of the gradient writes them."""
    scale, bias = array_of(node.inputs[1]), array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    ones = scale is not None and bool((scale == 1).all())
    return _is_last_axis(node) and ones and bias is not None and not bias.any()


def _gradients(graphs: LinkedGraphs, standardized: ir.Node, norm: ir.Node) -> list[LayerGradient]:
    """The gradients of `norm` that read this xhat."""
    products = [reader for reader in graphs.readers(standardized.outputs[0]) if reader.op_type == "Mul"]
    found = []
    for product in products:
        for dy in product.inputs:
            if graphs.source(dy) is not standardized.outputs[0] and dy is not None:
                gradient = _gradient(graphs, standardized, norm, product, dy)
                found += [gradient] if gradient is not None else []
    return found


def _gradient(
    graphs: LinkedGraphs, standardized: ir.Node, norm: ir.Node, product: ir.Node, dy: ir.Value
) -> LayerGradient | None:
    graph = product.graph
    scale = local(graphs, graph, norm.inputs[1]) if graph is not None else None
    dy = graphs.source(dy) or dy
    dscale, dbias = _summed(graphs, product.outputs[0]), _summed(graphs, dy)
    if scale is None or dims(dy) != dims(product.outputs[0]):
        return None
    dx = _input_gradient(graphs, standardized, dy, scale)
    if dx is None and (dscale is None or len(standardized.outputs) > 1):
        return None
    summed, more = _residual(graphs, dx, product) if dx is not None else (None, None)
    return LayerGradient(
        norm=norm, product=product, dy=dy, scale=scale, dx=dx, dscale=dscale, dbias=dbias, summed=summed, more=more
    )


def _summed(graphs: LinkedGraphs, value: ir.Value) -> ir.Value | None:
    """The sum of `value` over all axes but the last one, as [C]."""
    axes = list(range(len(dims(value)) - 1))
    for node in graphs.readers(value):
        for reader in graphs.readers(node.outputs[0]) if _reduces(node, axes) else []:
            if reader.op_type == "Squeeze" and _axes(reader) == axes:
                return reader.outputs[0]
    return None


def _reduces(node: ir.Node, axes: list[int]) -> bool:
    return node.op_type == "ReduceSum" and _axes(node) == axes and node.attributes.get_int("keepdims", 1) == 1


def _axes(node: ir.Node) -> list[int]:
    axes = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return [int(axis) for axis in axes.reshape(-1)] if axes is not None else []


def _input_gradient(graphs: LinkedGraphs, standardized: ir.Node, dy: ir.Value, scale: ir.Value) -> ir.Value | None:
    """dx from dy, compared with the formula of `rules/normalization.py`."""
    if len(standardized.outputs) < 3:
        return None
    xhat, _, r = standardized.outputs
    terms, operands = Terms(), {"dy": dy, "scale": scale, "xhat": xhat, "r": r}
    (wanted,) = expected(terms, operands, lambda op, *of: [_formula(op, *of)])
    atoms = {graphs.source(value): terms.term(name) for name, value in operands.items()}
    atoms |= {value: terms.term("scale") for value in graphs.ports(scale)}
    ends = [reader.outputs[0] for reader in graphs.readers(r) if reader.op_type == "Mul"]
    return next((end for end in ends if terms.of(graphs, end, atoms) == wanted), None)  # type: ignore[arg-type]


def _formula(op: Builder, dy: ir.Value, scale: ir.Value, xhat: ir.Value, r: ir.Value) -> ir.Value:
    column = op.Unsqueeze(op.Mul(scale, 1.0 / int(dims(xhat)[-1])), [1])
    along = op.Mul(xhat, op.MatMul(op.Mul(dy, xhat), column))
    return op.Mul(op.Sub(op.Sub(op.Mul(dy, scale), op.MatMul(dy, column)), along), r)


def _residual(graphs: LinkedGraphs, dx: ir.Value, product: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """The sum of `dx` and an earlier gradient of the same shape, where nothing else reads dx, and this gradient."""
    readers = graphs.readers(dx)
    if len(readers) != 1 or readers[0].op_type != "Add" or readers[0].graph is not dx.graph or dx.is_graph_output():
        return None, None
    add = readers[0]
    more = next((graphs.source(value) for value in add.inputs if graphs.source(value) is not dx), None)
    return (add.outputs[0], more) if more is not None and _is_before(graphs, more, product) else (None, None)


def _is_before(graphs: LinkedGraphs, value: ir.Value, node: ir.Node) -> bool:
    """Whether `value` exists when `node` runs, and has the shape of its output."""
    maker, graph = value.producer(), node.graph
    if dims(value) != dims(node.outputs[0]) or maker is None or maker.graph is None or graph is None:
        return False
    if maker.graph is not graph:
        return graphs.place(value) < graphs.place(node.outputs[0])
    order = list(graph)
    return order.index(maker) < order.index(node)


def _replace_forward(graphs: LinkedGraphs, norm: ir.Node) -> list[ir.Value]:
    """Replace the layer norm, and the sum of a residual before it; return mean and reciprocal."""
    x, scale, bias = norm.inputs[:3]
    added = graphs.made_by(x, "Add")
    joins = added is not None and added.graph is norm.graph and all(dims(v) == dims(x) for v in added.inputs)
    whole: Type = (ir.DataType.FLOAT, dims(x))
    each: Type = (ir.DataType.FLOAT, dims(x)[:-1])
    operands = [added.inputs[0], scale, bias, added.inputs[1]] if joins and added is not None else [x, scale, bias]
    types = [whole, each, each, *([whole] if joins else [])]
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    place = added if joins and added is not None else norm
    made = graphs.insert(place, "LayerNormForward", operands, types, epsilon=epsilon, axis=-1)
    graphs.replace(norm.outputs[0], made[0])
    if joins and added is not None:
        graphs.replace(added.outputs[0], made[3])
    return made[1:3]


def _insert(
    graphs: LinkedGraphs, gradient: LayerGradient, statistics: list[ir.Value]
) -> list[tuple[ir.Value, ir.Value]]:
    """Insert the node of a gradient; return the values that it replaces, with its own."""
    x = gradient.norm.inputs[0]
    end = gradient.summed if gradient.summed is not None else gradient.dx
    whole: Type = (ir.DataType.FLOAT, dims(gradient.dy))
    vector: Type = (ir.DataType.FLOAT, dims(gradient.dy)[-1:])
    old = [end, gradient.dscale, gradient.dbias]
    types = [kind if value is not None else None for value, kind in zip(old, (whole, vector, vector), strict=True)]
    inputs = [gradient.dy, x, gradient.scale, *statistics, gradient.more]
    made = graphs.insert(gradient.product, "LayerNormBackward", inputs, types, axis=-1)
    return [(value, new) for value, new in zip(old, made, strict=True) if value is not None]
