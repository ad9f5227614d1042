"""Blocked graphs written out in standard operators, so that any block size runs on any engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from ttac.passes.blocked.layout import DOMAIN
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims


def spelled_out(model: ir.Model, block: int) -> ir.Model:
    """A copy of a blocked graph without internal operators; its blocked ports stay blocked."""
    model = model.clone()
    op = Builder(model.graph, "reference", model.opset_imports[""])
    for node in list(model.graph):
        if node.domain == DOMAIN:
            with op.at("", before=node):
                made = SPELLINGS[node.op_type](op, node, block)
            old = node.outputs[0]
            name, old.name = old.name, f"{old.name}.internal"
            made.shape, made.type = old.shape, old.type
            old.replace_all_uses_with(made, replace_graph_outputs=True)
            made.name = name
            model.graph.remove(node, safe=True)
    model.opset_imports.pop(DOMAIN, None)
    return model


def blocked(op: Builder, x: ir.Value, shape: Sequence[int | str], block: int) -> ir.Value:
    """[N, C, H, W] -> the same in blocks, under the same shape."""
    channels, height, width = (int(size) for size in shape[1:])
    turned = op.Transpose(op.Reshape(x, [-1, channels // block, block, height, width]), perm=[0, 1, 3, 4, 2])
    return op.Reshape(turned, [-1, channels, height, width])


def plain(op: Builder, x: ir.Value, shape: Sequence[int | str], block: int) -> ir.Value:
    """The inverse of `blocked`."""
    channels, height, width = (int(size) for size in shape[1:])
    turned = op.Transpose(op.Reshape(x, [-1, channels // block, height, width, block]), perm=[0, 1, 4, 2, 3])
    return op.Reshape(turned, [-1, channels, height, width])


def _kernel(op: Builder, w: ir.Value, block: int, inputs_too: bool) -> ir.Value:
    outputs, inputs, height, width = (int(size) for size in dims(w))
    if inputs_too:
        split, order = [outputs // block, inputs // block, height, width, block, block], [0, 5, 1, 4, 2, 3]
    else:
        split, order = [outputs // block, inputs, height, width, block], [0, 4, 1, 2, 3]
    return op.Reshape(op.Transpose(op.Reshape(w, split), perm=order), [outputs, inputs, height, width])


def _conv(op: Builder, node: ir.Node, block: int) -> ir.Value:
    x, w, bias, addend, *_ = (*node.inputs, None, None)
    assert x is not None and w is not None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    activation, numbers = attributes.pop("activation", ""), attributes.pop("activation_params", [])
    group, inputs = attributes.get("group", 1), int(dims(w)[1])
    narrow = inputs < block and group == 1
    kernel = _kernel(op, w, block, inputs_too=inputs >= block)
    y = op.Conv(x if narrow else plain(op, x, dims(x), block), kernel, bias, **attributes)
    y = blocked(op, y, dims(node.outputs[0]), block)
    if addend is not None:
        y = op.Add(y, addend)
    if activation == "LeakyRelu":
        return op.LeakyRelu(y, alpha=numbers[0])
    if activation == "Clip":
        return op.Clip(y, float(numbers[0]), float(numbers[1]))
    if activation == "HardSigmoid":
        return op.HardSigmoid(y, alpha=numbers[0], beta=numbers[1])
    assert activation in ("", "Relu")
    return op.Relu(y) if activation else y


def _pool(op: Builder, node: ir.Node, block: int) -> ir.Value:
    (x,) = node.inputs
    assert x is not None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    found: ir.Value = getattr(op, node.op_type)(plain(op, x, dims(x), block), **attributes)
    return blocked(op, found, dims(node.outputs[0]), block)


def _reorder(op: Builder, node: ir.Node, block: int) -> ir.Value:
    (x,) = node.inputs
    assert x is not None
    return (blocked if node.op_type == "ReorderInput" else plain)(op, x, dims(x), block)


SPELLINGS: dict[str, Callable[[Builder, ir.Node, int], ir.Value]] = {
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _pool,
    "ReorderInput": _reorder,
    "ReorderOutput": _reorder,
}
