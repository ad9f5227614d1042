"""The gradient of a softmax over the last axis: one node."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.graph.match import array_of
from ttac.passes.graph.shapes import dims
from ttac.passes.kernels.linked_graphs import LinkedGraphs


def fuse_softmax_gradients(graphs: LinkedGraphs) -> None:
    """Replace y*(dy - sum dy*y) of every softmax y over its last axis."""
    for softmax in list(graphs.nodes("Softmax")):
        y = softmax.outputs[0]
        if y.shape is None or y.dtype != ir.DataType.FLOAT:
            continue
        if softmax.attributes.get_int("axis", -1) not in (-1, len(y.shape) - 1):
            continue
        for node in graphs.readers(y):
            dy = _softmax_input(graphs, node, y) if node.op_type == "Mul" else None
            if dy is not None:
                (made,) = graphs.insert(node, "SoftmaxBackward", [dy, y], [(ir.DataType.FLOAT, dims(y))])
                graphs.replace(node.outputs[0], made)


def _softmax_input(graphs: LinkedGraphs, node: ir.Node, y: ir.Value) -> ir.Value | None:
    """dy, where `node` is y*(dy - sum dy*y)."""
    difference = next((found for value in node.inputs if (found := graphs.made_by(value, "Sub")) is not None), None)
    total = graphs.made_by(difference.inputs[1], "ReduceSum") if difference is not None else None
    product = graphs.made_by(total.inputs[0], "Mul") if total is not None else None
    if difference is None or total is None or product is None or not total.attributes.get_int("keepdims", 1):
        return None
    dy, axes = difference.inputs[0], array_of(total.inputs[1]) if len(total.inputs) > 1 else None
    if axes is None or axes.tolist() not in ([-1], [len(dims(y)) - 1]):
        return None
    factors = {graphs.source(value) for value in product.inputs}
    if factors == {graphs.source(dy), y} or factors == _attention_factors(graphs, dy, y):
        return dy
    return None


def _attention_factors(graphs: LinkedGraphs, dy: ir.Value | None, y: ir.Value) -> set[ir.Value | None]:
    """do and o of dy = do @ v^T and o = y @ v: the sum of do*o is that of dy*y."""
    product = graphs.made_by(dy, "MatMul")
    swapped = graphs.made_by(product.inputs[1], "Transpose") if product is not None else None
    if product is None or swapped is None:
        return set()
    rank = len(dims(y))
    if list(swapped.attributes.get_ints("perm", ())) != [*range(rank - 2), rank - 1, rank - 2]:
        return set()
    v = graphs.source(swapped.inputs[0])
    outs = [
        node.outputs[0]
        for node in graphs.readers(y)
        if node.op_type == "MatMul" and graphs.source(node.inputs[0]) is y and graphs.source(node.inputs[1]) is v
    ]
    return {graphs.source(product.inputs[0]), outs[0]} if len(outs) == 1 else set()
