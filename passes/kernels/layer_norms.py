"""Layer norms over the last axis, and over the channels of maps between two transpositions: one node each way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.match import array_of, only_reader
from ttac.passes.graph.shapes import dims
from ttac.passes.kernels.expected import expected
from ttac.passes.kernels.linked_graphs import LinkedGraphs, fills_blocks
from ttac.passes.kernels.terms import Terms

CHANNELS_LAST, CHANNELS_SECOND = [0, 2, 3, 1], [0, 3, 1, 2]
"""Permutations from maps [N, C, H, W] to [N, H, W, C], and back."""
GRADIENT = frozenset("Mul Sub MatMul Unsqueeze".split())
"""Operators in the gradient of a layer norm."""


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """A layer norm whose forward is one node.

    Attributes:
        x: the node's input: rows [..., C], or maps [N, C, H, W].
        rows: x as the standard operators read it.
        maps: whether x are maps.
    """

    x: ir.Value
    rows: ir.Value
    scale: ir.Value
    mean: ir.Value
    reciprocal: ir.Value
    maps: bool
    epsilon: float


def fuse_layer_norms(graphs: LinkedGraphs) -> None:
    """Replace every LayerNormalization over the last axis, and its gradient where that has the expected shape."""
    norms: dict[tuple[object, float], LayerNorm] = {}
    for node in list(graphs.nodes("LayerNormalization")):
        key = graphs.key(node.inputs[0]), node.attributes.get_float("epsilon", 1e-5)
        if key not in norms and _fits(node):
            norms[key] = _fuse(graphs, node, key[1])
    by_rows = {(graphs.key(norm.rows), norm.epsilon): norm for norm in norms.values()}
    for node in list(graphs.nodes("LayerNormalization")):
        norm = by_rows.get((graphs.key(node.inputs[0]), node.attributes.get_float("epsilon", 1e-5)))
        if norm is not None and _is_standard(node):
            for product, dy in _products(graphs, node.outputs[0]):
                _fuse_gradient(graphs, norm, node, product, dy)


def _fits(node: ir.Node) -> bool:
    """Whether the node has a scale and a bias of a model, no other outputs, and the last axis alone."""
    x = node.inputs[0]
    if x is None or x.dtype != ir.DataType.FLOAT or len(dims(x)) < 2 or not isinstance(dims(x)[-1], int):
        return False
    vectors = [dims(value) for value in node.inputs[1:] if value is not None] == [dims(x)[-1:]] * 2
    return vectors and len(node.outputs) == 1 and _over_last_axis(node) and not _is_standard(node)


def _over_last_axis(node: ir.Node) -> bool:
    axis = node.attributes.get_int("axis", -1)
    return axis in (-1, len(dims(node.inputs[0])) - 1)


def _is_standard(node: ir.Node) -> bool:
    """Whether the node gives xhat, and perhaps the reciprocal deviation: its scale is one and its bias zero."""
    scale, bias = (array_of(value) for value in (*node.inputs, None, None)[1:3])
    known = scale is not None and bias is not None and bool((scale == 1).all()) and not bias.any()
    return known and _over_last_axis(node)


def _fuse(graphs: LinkedGraphs, node: ir.Node, epsilon: float) -> LayerNorm:
    rows, scale, bias = node.inputs
    assert rows is not None and scale is not None
    maps, end = _maps_around(graphs, node)
    x = maps if maps is not None else rows
    added = _sum(graphs, x, node)
    whole = ir.DataType.FLOAT, dims(x)
    statistic = ir.DataType.FLOAT, [size for i, size in enumerate(dims(x)) if i != (1 if maps else len(dims(x)) - 1)]
    inputs = [*(added.inputs if added is not None else [x]), None][:2]
    made = graphs.insert(
        end,
        "LayerNormForward",
        [inputs[0], scale, bias, inputs[1]],
        [whole, statistic, statistic, *([whole] if added is not None else [])],
        epsilon=epsilon,
        axis=1 if maps is not None else -1,
    )
    graphs.replace(end.outputs[0], made[0])
    if added is not None:
        graphs.replace(x, made[3])
        rows, x = rows if maps is not None else made[3], made[3]
    return LayerNorm(
        x=x, rows=rows, scale=scale, mean=made[1], reciprocal=made[2], maps=maps is not None, epsilon=epsilon
    )


def _maps_around(graphs: LinkedGraphs, node: ir.Node) -> tuple[ir.Value | None, ir.Node]:
    """The maps whose transposition the norm reads, and the node that gives maps again; None and the norm otherwise."""
    before = graphs.made_by(node.inputs[0], "Transpose")
    after = only_reader(node.outputs[0], "Transpose")
    if before is None or after is None or before.graph is not node.graph or not _blocks_well(node):
        return None, node
    if (_perm(before), _perm(after)) != (CHANNELS_LAST, CHANNELS_SECOND):
        return None, node
    return before.inputs[0], after


def _perm(node: ir.Node) -> list[int]:
    return list(node.attributes.get_ints("perm", ()))


def _blocks_well(node: ir.Node) -> bool:
    return fills_blocks(int(dims(node.inputs[0])[-1]))


def _sum(graphs: LinkedGraphs, x: ir.Value, node: ir.Node) -> ir.Node | None:
    """The Add of two tensors of one shape that makes x in the graph of the norm."""
    added = graphs.made_by(x, "Add")
    if added is None or added.graph is not node.graph or added.inputs[0] is added.inputs[1]:
        return None
    same = all(value is not None and value.shape is not None and dims(value) == dims(x) for value in added.inputs)
    return added if same else None


def _products(graphs: LinkedGraphs, xhat: ir.Value) -> Iterator[tuple[ir.Node, ir.Value]]:
    """The products dy*xhat that are summed, and their dy."""
    for node in graphs.readers(xhat):
        if node.op_type != "Mul" or len(node.inputs) != 2:
            continue
        for value, other in (node.inputs, node.inputs[::-1]):
            if graphs.source(value) is xhat and other is not None and dims(other) == dims(xhat):
                yield node, other


def _fuse_gradient(graphs: LinkedGraphs, norm: LayerNorm, standard: ir.Node, product: ir.Node, dy: ir.Value) -> None:
    dscale, dbias = _total(graphs, product.outputs[0]), _total(graphs, graphs.source(dy) or dy)
    found = _input_gradient(graphs, norm, standard, dy)
    dx, scale = found or (None, norm.scale)
    made = [value.producer() for value in (dx, dscale, dbias) if value is not None]
    unknown = any(graphs.readers(value) for value in standard.outputs[1:])
    if not made or (found is None and (unknown or not _is_given(graphs, scale))):
        return
    first = min((node for node in made if node is not None), key=lambda node: graphs.place(node.outputs[0]))
    place = product if product.graph is first.graph else first
    given: ir.Value | None = dy
    if norm.maps:
        given, dx = _map_of(graphs, dy), _map_from(dx)
        if given is None or (found is not None and dx is None):
            return
    added = _added(dx) if dx is not None and dx.graph is place.graph and not norm.maps else None
    end, more = added or (dx, None)
    whole, vector = (ir.DataType.FLOAT, dims(norm.x)), (ir.DataType.FLOAT, dims(norm.rows)[-1:])
    results = graphs.insert(
        place,
        "LayerNormBackward",
        [given, norm.x, scale, norm.mean, norm.reciprocal, more],
        [whole if end is not None else None, vector, vector],
        axis=1 if norm.maps else -1,
    )
    for old, new in zip((end, dscale, dbias), results, strict=True):
        if old is not None:
            graphs.replace(old, new)


def _is_given(graphs: LinkedGraphs, scale: ir.Value) -> bool:
    """Whether every graph can read the scale: an input of the step."""
    source = graphs.source(scale)
    return source is not None and source.is_graph_input()


def _total(graphs: LinkedGraphs, value: ir.Value) -> ir.Value | None:
    """The sum [C] of `value` [..., C] over all other axes."""
    for node in graphs.readers(value):
        axes = array_of(node.inputs[1]) if node.op_type == "ReduceSum" and len(node.inputs) > 1 else None
        if axes is None or sorted(axes.tolist()) != list(range(len(dims(value)) - 1)):
            continue
        total = node.outputs[0]
        squeezed = only_reader(total, "Squeeze") if len(dims(total)) > 1 else None
        total = squeezed.outputs[0] if squeezed is not None else total
        if dims(total) == dims(value)[-1:]:
            return total
    return None


def _input_gradient(
    graphs: LinkedGraphs, norm: LayerNorm, standard: ir.Node, dy: ir.Value
) -> tuple[ir.Value, ir.Value] | None:
    """dx and the norm's scale in its graph, in the formula of `rules/normalization.py`."""
    if len(standard.outputs) < 3:
        return None
    xhat, _, reciprocal = standard.outputs
    products = [node for node in graphs.readers(graphs.source(dy) or dy) if node.op_type == "Mul"]
    scales = [value for node in products for value in node.inputs if graphs.key(value) == graphs.key(norm.scale)]
    ends = [node.outputs[0] for node in graphs.readers(reciprocal) if node.op_type == "Mul"]
    if not scales or scales[0] is None:
        return None
    operands = {"dy": dy, "xhat": xhat, "reciprocal": reciprocal, "scale": scales[0]}
    terms = Terms(GRADIENT)
    (wanted,) = expected(terms, operands, _gradient)
    atoms = {graphs.source(value): terms.term(name) for name, value in operands.items()}
    found = (end for end in ends if terms.of(graphs, end, atoms) == wanted)  # type: ignore[arg-type]
    dx = next(found, None)
    return (dx, scales[0]) if dx is not None else None


def _gradient(op: Builder, dy: ir.Value, xhat: ir.Value, reciprocal: ir.Value, scale: ir.Value) -> Sequence[ir.Value]:
    column = op.Unsqueeze(op.Mul(scale, 1.0 / int(dims(xhat)[-1])), [1])
    along = op.Mul(xhat, op.MatMul(op.Mul(dy, xhat), column))
    return [op.Mul(op.Sub(op.Sub(op.Mul(dy, scale), op.MatMul(dy, column)), along), reciprocal)]


def _map_of(graphs: LinkedGraphs, rows: ir.Value) -> ir.Value | None:
    node = graphs.made_by(rows, "Transpose")
    return node.inputs[0] if node is not None and _perm(node) == CHANNELS_LAST else None


def _map_from(rows: ir.Value | None) -> ir.Value | None:
    node = only_reader(rows, "Transpose") if rows is not None else None
    return node.outputs[0] if node is not None and _perm(node) == CHANNELS_SECOND else None


def _added(dx: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The sum of dx and another gradient of x, and that gradient."""
    node = only_reader(dx, "Add")
    if node is None or node.inputs[0] is node.inputs[1]:
        return None
    other = next(value for value in node.inputs if value is not dx)
    return (node.outputs[0], other) if other is not None and dims(other) == dims(dx) else None
