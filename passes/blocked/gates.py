"""Maps scaled and shifted by one number for each sample and channel, as in squeeze and excite blocks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.blocked.layout import Layouts
from ttac.passes.graph.match import made_by
from ttac.passes.graph.shapes import dims, known_dims
from ttac.runtime.graph_check import KERNEL_DOMAIN


def block_gated(at: Layouts, node: ir.Node) -> bool:
    """Mul or Add of a blocked map and gates [N, C, 1, 1]; with kernels, an Add joins the Mul before it."""
    for x, gates in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        gates = _repeated(gates)
        if at.has(x) and x is not None and gates is not None and _is_gates(gates, x):
            break
    else:
        return False
    blocked, vector = at.blocked(x), at.op.Reshape(at.vector(at.plain(gates), 1), [-1])
    if not at.kernels:
        made = _broadcast(at, node, blocked, vector)
    elif node.op_type == "Mul":
        made = _affine(at, _lines(at, blocked), vector, None, blocked)
    else:
        lines, scale = _scaled(blocked) or (_lines(at, blocked), None)
        made = _affine(at, lines, scale, vector, blocked)
    at.replace(node.outputs[0], made)
    return True


def _repeated(value: ir.Value | None) -> ir.Value | None:
    """The gates behind an Expand to whole maps; the value itself otherwise."""
    node = made_by(value, "Expand")
    return node.inputs[0] if node is not None else value


def _is_gates(gates: ir.Value, x: ir.Value) -> bool:
    sizes = known_dims(gates)
    return gates.dtype == ir.DataType.FLOAT and sizes == [*dims(x)[:2], 1, 1] != dims(x)


def _broadcast(at: Layouts, node: ir.Node, blocked: ir.Value, gates: ir.Value) -> ir.Value:
    op, (_, channels, height, width) = at.op, dims(blocked)
    groups, pixels = int(channels) // at.block, int(height) * int(width)
    cells = op.Reshape(blocked, [-1, groups, pixels, at.block])
    each = op.Reshape(gates, [-1, groups, 1, at.block])
    joined = op.Mul(cells, each) if node.op_type == "Mul" else op.Add(cells, each)
    return op.Reshape(joined, [-1, int(channels), int(height), int(width)])


def _lines(at: Layouts, blocked: ir.Value) -> ir.Value:
    """The maps of all samples as channels of one sample."""
    batch, channels, *sizes = dims(blocked)
    made = at.op.Reshape(blocked, [1, -1, *(int(size) for size in sizes)])
    made.shape = ir.Shape([1, f"{batch}*{channels}", *sizes])
    return made


def _affine(at: Layouts, lines: ir.Value, scale: ir.Value | None, offset: ir.Value | None, like: ir.Value) -> ir.Value:
    """lines*scale + offset by one node of the library, in the shape of `like`."""
    op = at.op
    given = scale if scale is not None else offset
    assert given is not None
    zeros, ones = (op.Expand(op.constant(np.full(1, number, np.float32)), op.Shape(given)) for number in (0, 1))
    inputs = [lines, scale or ones, offset or zeros, None, zeros, ones]
    attributes: dict[str, int | float | str] = {"block": at.block, "epsilon": 0.0, "act": "none", "statistics": "given"}
    node = ir.node("NormForward", inputs, attributes, domain=KERNEL_DOMAIN)
    node.outputs[0].type, node.outputs[0].shape = lines.type, lines.shape
    op.place(node, "gated")
    return op.Reshape(node.outputs[0], [-1, *(int(size) for size in dims(like)[1:])])


def _scaled(blocked: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The lines and gates of which `_affine` made `blocked` without an offset."""
    reshape = blocked.producer()
    node = reshape.inputs[0].producer() if reshape is not None and reshape.inputs[0] is not None else None
    if node is None or node.op_type != "NormForward" or node.attributes.get_float("epsilon") != 0 or blocked.uses():
        return None
    return (node.inputs[0], node.inputs[1]) if node.inputs[2] is node.inputs[4] else None  # type: ignore[return-value]
