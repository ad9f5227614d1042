"""Nodes of the operator library in the blocked layout: they take their block as an attribute."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.blocked.layout import Layouts, Phases
from ttac.passes.graph.rewire import rename
from ttac.passes.graph.shapes import dims, known_dims
from ttac.passes.kernels.linked_graphs import window_attributes
from ttac.runtime.graph_check import KERNEL_DOMAIN

SPARSE = ("KeepBlocks", "SparseNormBackward", "RestoreBlocks", "QuantizeRows", "DequantizeRows")
"""Nodes that number the blocks or the rows of the plain tensor, so they know no padding."""
ROWS = ("SoftmaxBackward",)
"""Nodes that read whole rows of the plain tensor."""


def block_kernel(at: Layouts, node: ir.Node) -> bool:
    """The same node on blocked maps; vectors stay."""
    if node.op_type in (*ROWS, "ReorderWeights") or node.attributes.get_int("axis", 1) == -1:
        return False
    maps = [value for value in node.inputs if is_map(value) and not at.is_weight(value)]
    results = [value for value in node.outputs if is_map(value)]
    if not (any(at.has(value) for value in maps) or _is_wanted(node)) or not all(at.can(value) for value in maps):
        return False
    if not all(at.fits(value) for value in [*maps, *results]):
        return False
    whole = all(int(dims(value)[1]) % at.block == 0 for value in [*maps, *results])
    if not whole and (node.op_type in SPARSE or _has_bits(node)):
        return False
    inputs = [at.blocked(v) if v in maps else v if v is None or whole else _filled(at, v) for v in node.inputs]
    attributes = {**{name: attribute.value for name, attribute in node.attributes.items()}, "block": at.block}
    if node.op_type.startswith("LayerNorm"):
        attributes["channels"] = int(dims(maps[0])[1])
    made = ir.node(node.op_type, inputs, attributes, domain=KERNEL_DOMAIN, num_outputs=len(node.outputs))
    for old, new in zip(node.outputs, made.outputs, strict=True):
        new.type, new.shape, new.name = (
            old.type,
            old.shape if whole else _blocked_shape(at, old),
            "" if old.name == "" else None,
        )
    at.op.place(made, node.op_type.lower())
    for old, new in zip(node.outputs, made.outputs, strict=True):
        if is_map(old):
            at.replace(old, new)
        elif old.name != "":
            rename(old, new if whole or len(dims(old)) > 1 else at.cut(new, int(dims(old)[0])))
    return True


def _is_wanted(node: ir.Node) -> bool:
    """Whether the node works on blocks even where no input is blocked.

    Both nodes of a mask in bits need the same order, layer norms are slow on plain maps, and a restored map has readers
    in blocks.
    """
    return _has_bits(node) or node.op_type.startswith("LayerNorm") or node.op_type == "RestoreBlocks"


def block_weight_gradient(at: Layouts, node: ir.Node) -> bool:
    """The same node on blocked maps; an input with few channels stays plain, and the result is plain always."""
    x, dy = node.inputs
    assert x is not None and dy is not None
    group, (outputs, inputs) = node.attributes.get_int("group", 1), node.attributes.get_ints("shape")
    blocks = at.can(x)
    if not at.can(dy) or (group > 1 and (outputs // group % at.block or (blocks and inputs % at.block))):
        return False
    operands = [at.blocked(x) if blocks else at.plain(x), at.blocked(dy)]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    attributes |= {"block": at.block, "x_block": at.block if blocks else 1}
    made = ir.node("ConvWeightGrad", operands, attributes, domain=KERNEL_DOMAIN)
    made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    at.op.place(made, "convweightgrad")
    rename(node.outputs[0], made.outputs[0])
    return True


def _blocked_shape(at: Layouts, value: ir.Value) -> ir.Shape | None:
    if value.name == "" or not (sizes := known_dims(value)):
        return value.shape
    if len(sizes) not in (1, 4):
        return value.shape
    return ir.Shape(at.shape(sizes) if is_map(value) else [at.filled(int(sizes[0]))])


def _filled(at: Layouts, value: ir.Value) -> ir.Value:
    """A vector of channels or a depthwise kernel with the padding of maps; one number for each position stays."""
    return at.vector(value) if len(dims(value)) == 1 or at.is_weight(value) else value


def _has_bits(node: ir.Node) -> bool:
    """Whether the node writes or reads a mask with one bit an element."""
    return any(
        v is not None and v.name and v.dtype == ir.DataType.UINT8 and not is_map(v)
        for v in (*node.inputs, *node.outputs)
    )


def is_map(value: ir.Value | None) -> bool:
    """Whether `value` is [N, C, H, W]."""
    return value is not None and len(known_dims(value)) == 4


def interleave_by_kernel(at: Layouts, phases: Phases, like: ir.Value) -> ir.Value:
    """The map whose even and odd rows and columns are the `phases`, all blocked; absent phases are zero."""
    inputs = [phase for line in phases for phase in line]
    while inputs[-1] is None:
        inputs.pop()
    sizes = [int(size) for size in dims(like)[2:]]
    node = ir.node("Interleave", inputs, {"block": at.block, "sizes": sizes}, domain=KERNEL_DOMAIN)
    node.outputs[0].type, node.outputs[0].shape = like.type, like.shape
    at.op.place(node, "interleave")
    return node.outputs[0]


def input_gradient_by_kernel(at: Layouts, node: ir.Node, g: ir.Value, w: ir.Value) -> ir.Value:
    """The output of a depthwise ConvTranspose, blocked."""
    sizes = [int(size) for size in dims(node.outputs[0])[2:]]
    attributes = {"block": at.block, "sizes": sizes, **window_attributes(node, w)}
    made = ir.node("DepthwiseInputGrad", [at.blocked(g), at.vector(w)], attributes, domain=KERNEL_DOMAIN)
    made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    at.op.place(made, "depthwiseinputgrad")
    return made.outputs[0]
