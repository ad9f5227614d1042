"""Write as one operator the norms that exporters spell in several, and give those without scale and bias one.

After this room the parameters of every norm are inputs of one node, scale second and bias third:

    LayerNormalization, InstanceNormalization                          as they stand
    BatchNormalization with mean 0, variance 1 and epsilon 0           the scale and bias [C] behind a norm over groups
                                                                       or channels, or of a folded batch norm
    Mul by a constant                                                  the scale behind x/sqrt(mean of x^2 + eps)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.match import array_of, only_reader
from ttac.passes.graph.rewire import node_after
from ttac.passes.normalise.affine_nodes import (
    KIND,
    XHAT,
    channel_affine,
    filled,
    layer_of,
    per_channel,
    replace_by_norm,
    shared_layer,
)
from ttac.passes.normalise.folded_affines import folded_batch_norm
from ttac.passes.normalise.group_norms import group_norm, over_groups, split_group_norm, whole_group_norm
from ttac.passes.normalise.norm_patterns import Affine, Standardisation, affine_after, standardisation

ROOM = "fuse"


def fuse_norms(model: ir.Model) -> int:
    """Rewrite `model` in place; returns how many norms were gathered."""
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    for node in list(model.graph):
        found = standardisation(node)
        if isinstance(found, Standardisation) and found.holds_affine:
            _write_plainly(op, node, found)
    common.RemoveUnusedNodesPass()(model)
    count = sum(_fused(op, node) for node in list(model.graph) if node.graph is not None)
    common.RemoveUnusedNodesPass()(model)
    return count


def _fused(op: Builder, node: ir.Node) -> bool:
    if node.op_type == "InstanceNormalization":
        return group_norm(op, node)
    if node.op_type == "GroupNormalization":
        return whole_group_norm(op, node)
    if node.op_type == "LayerNormalization":
        return _bare_layer_norm(op, node)
    found = standardisation(node)
    if isinstance(found, Standardisation):
        if over_groups(found):
            return split_group_norm(op, node, found)
        if _over_space(found):
            return channel_affine(op, found.y, "instance" if found.centred else "rms", node)
        return _layer_norm(op, node, found) if found.centred else _root_mean_square(op, node, found)
    return node.op_type == "Mul" and folded_batch_norm(op, node)


def over_axes(array: np.ndarray | None, sizes: tuple[int, ...]) -> np.ndarray | None:
    """A constant in the shape `sizes` of the axes a layer norm works on; None if it varies along others."""
    if array is None or array.size == 1:
        return None
    shape = tuple(size for size in array.shape[: max(0, array.ndim - len(sizes))])
    if any(size != 1 for size in shape):
        return None
    tail = array.reshape(array.shape[len(shape) :])
    try:
        return np.ascontiguousarray(np.broadcast_to(tail, sizes))
    except ValueError:
        return None


def _write_plainly(op: Builder, node: ir.Node, found: Standardisation) -> None:
    """Write a norm whose nodes hold its scale and bias the plain way: standardise, then scale, then shift."""
    old, axes = found.y, list(found.axes)
    makers = [maker for value in node.inputs if value is not None and (maker := value.producer()) is not None]
    layer = shared_layer(node, *[maker for maker in makers if maker is not found.x.producer()])
    with op.at(layer, before=node):
        top = op.Sub(found.x, op.ReduceMean(found.x, axes, keepdims=1)) if found.centred else found.x
        variance = op.ReduceMean(op.Mul(top, top), axes, keepdims=1)
        y = op.Div(top, op.Sqrt(op.Add(variance, np.array(found.eps, np.float32))))
        y = y if found.scale is None else op.Mul(y, found.scale)
        y = y if found.bias is None or not found.bias.any() else op.Add(y, found.bias)
    y.type, y.shape = old.type, old.shape
    old.replace_all_uses_with(y, replace_graph_outputs=True)
    old.name, y.name = f"{old.name}.holds_affine", old.name


def _over_space(found: Standardisation) -> bool:
    """Whether each channel is taken by itself, [N, C, ...] over all but N and C, and no constant varies within one.

    Instance norm written out is, and filter response norm (arXiv:1911.09737), which does without the mean.
    """
    rank = len(found.x.shape or ())
    if rank < 3 or found.axes != tuple(range(2, rank)):
        return False
    after = affine_after(found.y)
    held = [array for array in (after.scale, after.bias) if array is not None]
    return all(per_channel(array, found.y) is not None for array in held) if held else rank > 3


def _layer_norm(op: Builder, node: ir.Node, found: Standardisation) -> bool:
    """(x - mean)/sqrt(var + eps)*scale + bias -> LayerNormalization; over channels, its scale and bias as one node."""
    if found.axes == (1,) and not found.trailing:
        return channel_affine(op, found.y, "layer", node)
    sizes = found.sizes
    if not found.trailing or not sizes:
        return False
    after = _parameters(found, sizes)
    scale = after.scale if after.scale is not None else np.ones(sizes, np.float32)
    bias = after.bias if after.bias is not None else np.zeros(sizes, np.float32)
    with op.at(layer_of(node, after.y), before=node_after(op.graph, after.y.producer())):
        y = op.LayerNormalization(found.x, scale, bias, axis=-len(sizes), epsilon=found.eps)
    replace_by_norm(op, after.y, y, found.x, "layer")
    return True


def _parameters(found: Standardisation, sizes: tuple[int, ...]) -> Affine:
    """Scale and bias of a standardisation in the shape `sizes`, as far as they are constants of that shape."""
    after = affine_after(found.y)
    scale = over_axes(after.scale, sizes)
    if after.scale is not None and scale is None:
        return Affine(found.y)
    bias = over_axes(filled(after.bias, sizes), sizes) if scale is not None else over_axes(after.bias, sizes)
    if after.bias is not None and bias is None:
        product = only_reader(found.y, "Mul")
        return Affine(product.outputs[0] if scale is not None and product is not None else found.y, scale)
    return Affine(after.y, scale, bias)


def _root_mean_square(op: Builder, node: ir.Node, found: Standardisation) -> bool:
    """x/sqrt(mean of x^2 + eps)*scale: the scale as second operand, in the shape of the axes; ones where it lacks.

    Over channels the scale is [C, 1, ...].
    """
    if found.axes == (1,) and not found.trailing:
        sizes = (found.sizes + (1,) * (len(found.x.shape or ()) - 2)) if found.sizes else ()
    else:
        sizes = found.sizes if found.trailing else ()
    if not sizes:
        return False
    product = only_reader(found.y, "Mul")
    scale = over_axes(affine_after(found.y).scale, sizes)
    old = product.outputs[0] if scale is not None and product is not None else found.y
    with op.at(layer_of(node, old), before=node_after(op.graph, old.producer())):
        y = op.Mul(found.y, scale if scale is not None else np.ones(sizes, np.float32))
    replace_by_norm(op, old, y, found.y, "rms")
    node.metadata_props[KIND] = XHAT
    return True


def _bare_layer_norm(op: Builder, node: ir.Node) -> bool:
    """A LayerNormalization without bias whose scale is 1 has no affine: it gets a bias of zeros to train."""
    scale = array_of(node.inputs[1])
    if (len(node.inputs) > 2 and node.inputs[2] is not None) or scale is None or (scale != 1).any():
        return False
    node.resize_inputs(3)
    node.replace_input_with(2, op.constant(np.zeros(scale.shape, scale.dtype)))
    return True
