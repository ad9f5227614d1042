"""Blocked graphs written out in standard operators, so that any block size runs on any engine."""

from __future__ import annotations

import onnx_ir as ir

from tests.support.block_order import blocked, plain
from tests.support.kernel_spellings import KERNEL_SPELLINGS, Spelling
from ttac.passes.blocked.layout import DOMAIN
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.expand import expand_all
from ttac.passes.graph.shapes import dims
from ttac.passes.lower.lower import name_nodes
from ttac.runtime.graph_check import KERNEL_DOMAIN


def spelled_out(model: ir.Model, block: int) -> ir.Model:
    """A copy of a blocked graph without internal operators; its blocked ports stay blocked."""
    model = model.clone()
    op = Builder(model.graph, "reference", model.opset_imports[""])
    for node in list(model.graph):
        if node.domain in (DOMAIN, KERNEL_DOMAIN):
            with op.at("", before=node):
                made = SPELLINGS[node.op_type](op, node, block)
            for old, new in zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=False):
                if old.name != "":
                    name, old.name = old.name, f"{old.name}.internal"
                    new.shape, new.type = old.shape, old.type
                    old.replace_all_uses_with(new, replace_graph_outputs=True)
                    new.name = name
            model.graph.remove(node, safe=True)
    model.opset_imports.pop(DOMAIN, None)
    model.opset_imports.pop(KERNEL_DOMAIN, None)
    expand_all(model)
    name_nodes(model)
    return model


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
    if node.op_type == "ReorderInput":
        missing = int(dims(node.outputs[0])[1]) - int(dims(x)[1])
        return blocked(op, op.Pad(x, [0, 0, 0, 0, 0, missing, 0, 0]), dims(node.outputs[0]), block)
    return op.Slice(plain(op, x, dims(x), block), [0], [node.attributes.get_int("channels")], [1])


SPELLINGS: dict[str, Spelling] = {
    **KERNEL_SPELLINGS,
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _pool,
    "ReorderInput": _reorder,
    "ReorderOutput": _reorder,
}
