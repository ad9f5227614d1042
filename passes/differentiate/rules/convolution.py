"""Gradients of Conv and ConvTranspose; tensors are [N, C, ...] with one to three spatial axes."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.differentiate.reverse_walk import GradientBuilder, gradient
from ttac.passes.differentiate.rules.facts import refusal
from ttac.passes.graph.reshaping import pad_or_crop
from ttac.passes.graph.windows import Window, spatial, window_of


@gradient("Conv")
def conv(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> tuple[ir.Value | None, ...]:
    """y = w * x + b   ->   dx = dy * flipped w,  dw = x * dy,  db = sum dy per channel."""
    x, w = node.inputs[:2]
    assert w is not None
    window = window_of(node, spatial(w), spatial(x), spatial(node.outputs[0]))
    facts = {**window.attributes(), "group": node.attributes.get_int("group", 1)}
    # The gradient of the weights comes first: `x` is free before the gradient of the same size exists.
    dw = op.ConvWeightGrad(x, dy, **facts) if op.wants(1) else None
    dx = op.ConvInputGrad(dy, w, **facts, frozen=int(_frozen(op, w))) if op.wants(0) else None
    return (dx, dw, op.ChannelSum(dy)) if op.wants(2) else (dx, dw)


@gradient("ConvTranspose")
def conv_transpose(op: GradientBuilder, node: ir.Node, dy: ir.Value) -> tuple[ir.Value | None, ...]:
    """y is the input gradient of a Conv with kernel w [C, O/group, ...]   ->   dx = Conv(dy, w), dw as for Conv."""
    x, w = node.inputs[:2]
    window = _transposed_window(node)
    group = node.attributes.get_int("group", 1)
    dw = op.ConvWeightGrad(dy, x, **window.attributes(), group=group) if op.wants(1) else None
    dx = None
    if op.wants(0):
        whole = pad_or_crop(op, dy, [0] * len(window.axes), [min(0, over) for over in window.overhang], window.axes)
        pads = [*window.begins, *(max(0, over) for over in window.overhang)]
        dx = op.Conv(whole, w, strides=window.strides, dilations=window.dilations, pads=pads, group=group)
    return (dx, dw, op.ChannelSum(dy)) if op.wants(2) else (dx, dw)


def _transposed_window(node: ir.Node) -> Window:
    """Return the window of the Conv whose input gradient is the ConvTranspose `node`."""
    x, w = node.inputs[:2]
    if node.attributes.get_ints("output_shape") is not None:
        raise refusal(node, "engines disagree on the pads that its attribute `output_shape` asks for")
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise refusal(node, f"engines disagree on its `auto_pad` {node.attributes.get_string('auto_pad')!r}")
    return window_of(node, spatial(w), spatial(node.outputs[0]), spatial(x))


def _frozen(op: GradientBuilder, w: ir.Value) -> bool:
    return w.is_initializer() and not w.is_graph_input() and not op.wants(1)
