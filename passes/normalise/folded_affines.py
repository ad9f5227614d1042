"""Write the scale and shift that a folded batch norm leaves behind as one node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.layer_names import CONVOLUTIONS, FOLDED, FOLDED_EPSILON, TENSORFLOW_EPSILON
from ttac.passes.graph.match import array_of, made_by, only_reader, with_constant
from ttac.passes.graph.rewire import node_after, rename
from ttac.passes.normalise.affine_nodes import (
    KIND,
    affine,
    layer_of,
    per_channel,
)

ROOM = "fuse"
ACTS = frozenset({"Conv", "ConvTranspose", "Relu", "Clip", "Add", "Concat", "MaxPool", "AveragePool"})
"""Operators that may stand before a batch norm that was folded to a scale and a shift."""


def fuse_affines(model: ir.Model) -> None:
    """Write each scale and shift of a folded batch norm as one operator, in place.

    This runs before a simplifier, which would fold them into the convolutions in front.
    """
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    for node in [node for node in model.graph if node.op_type == "Mul"]:
        folded_batch_norm(op, node)
    common.RemoveUnusedNodesPass()(model)


def folded_batch_norm(op: Builder, node: ir.Node) -> bool:
    """x*scale + bias with one number per channel, behind a layer -> one BatchNormalization without statistics.

    A node that the file names as a batch norm, that directly follows a convolution, or of the form
    (x - mean)*scale + bias is marked as folded. With a name in the file, or with a mean, x may also be [N, C] or
    [N, ..., C].  Other nodes may then read x too, as before a residual block.
    """
    parts, total = with_constant(node), only_reader(node.outputs[0], "Add")
    shift = with_constant(total)
    if parts is None or total is None or shift is None:
        return False
    value, factor, offset = _with_mean(parts[0], parts[1], shift[1])
    name = node.metadata_props.get(FOLDED, "") or ("?" if value is not parts[0] else "")
    scale, bias = (per_channel(array, value) for array in (factor, offset))
    last = bool(name) and (scale is None or bias is None)
    if last:
        scale, bias = (_per_last(array, value) for array in (factor, offset))
    if scale is None or bias is None or not (name or (made_by(value, *ACTS) and len(value.uses()) == 1)):
        return False
    name = name or ("?" if made_by(value, *CONVOLUTIONS) else "")
    y, x, rank = total.outputs[0], value, len(value.shape or ())
    with op.at(layer_of(node, y) if name in ("", "?") else name, before=node_after(op.graph, y.producer())):
        if last and rank > 2:
            x = op.Transpose(value, perm=[0, rank - 1, *range(1, rank - 1)])
        new = norm = affine(op, x, scale, bias)
        if last and rank > 2:
            new = op.Transpose(norm, perm=[0, *range(2, rank), 1])
    last_node = norm.producer()
    assert last_node is not None
    last_node.metadata_props[KIND] = "affine"
    if name:
        last_node.metadata_props[FOLDED] = name
    keras = TENSORFLOW_EPSILON if value is not parts[0] else ""
    if epsilon := node.metadata_props.get(FOLDED_EPSILON, keras):
        last_node.metadata_props[FOLDED_EPSILON] = epsilon
    _rename(y, new)
    return True


def _with_mean(value: ir.Value, scale: np.ndarray, bias: np.ndarray) -> tuple[ir.Value, np.ndarray, np.ndarray]:
    """Return x, scale and bias - mean*scale where `value` is x - mean for the layer x, else the three unchanged.

    Keras on PyTorch writes a batch norm as (x - mean)*scale + bias, with scale = gamma/sqrt(variance + epsilon).
    """
    node = made_by(value, "Sub")
    mean = array_of(node.inputs[1]) if node is not None else None
    x = node.inputs[0] if node is not None else None
    if x is None or mean is None or x.producer() is None or only_reader(value, "Mul") is None:
        return value, scale, bias
    if not mean.size == scale.size == bias.size > 1:
        return value, scale, bias
    shifted = bias - (mean.astype(np.float64).reshape(scale.shape) * scale).reshape(bias.shape)
    return x, scale, shifted.astype(bias.dtype)


def _per_last(array: np.ndarray, value: ir.Value) -> np.ndarray | None:
    """Return a constant [..., C] as [C], where it has one number for each channel of `value` [N, ..., C]; else None."""
    if value.shape is None or array.size != value.shape[-1] or array.shape[-1:] != (array.size,):
        return None
    return array.reshape(-1)


def _rename(old: ir.Value, new: ir.Value) -> None:
    """Let all readers of `old` read `new`, under the old name."""
    node = new.producer()
    assert node is not None
    new.type, new.shape = old.type, old.shape
    rename(old, new)
    node.name = new.name
