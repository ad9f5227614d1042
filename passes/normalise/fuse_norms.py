"""Write each norm as one operator, however the exporter spells it; a norm without scale and bias gets both.

After this room the parameters of every norm are inputs of one node, scale second and bias third:

    LayerNormalization, InstanceNormalization                          unchanged
    BatchNormalization with mean 0, variance 1 and epsilon 0           the scale and bias [C] behind a norm over groups
                                                                       or channels, or of a folded batch norm
    Mul by a constant                                                  the scale behind x/sqrt(mean of x^2 + eps)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.layer_names import layer_name
from ttac.passes.graph.match import array_of, made_by, only_reader
from ttac.passes.graph.rewire import node_after, replace
from ttac.passes.graph.shapes import BATCH, dims
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
    """Rewrite `model` in place; return the number of norms written as one operator."""
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    for node in list(model.graph):
        norm = standardisation(node)
        if isinstance(norm, Standardisation) and norm.holds_affine:
            _write_plainly(op, node, norm)
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
    if node.op_type == "BatchNormalization":
        return _tracked_instance_norm(node)
    norm = standardisation(node)
    if isinstance(norm, Standardisation):
        if over_groups(norm):
            return split_group_norm(op, node, norm)
        if _over_space(norm):
            return channel_affine(op, norm.y, "instance" if norm.centred else "rms", node)
        return _layer_norm(op, node, norm) if norm.centred else _root_mean_square(op, node, norm)
    return node.op_type == "Mul" and folded_batch_norm(op, node)


def over_axes(array: np.ndarray | None, sizes: tuple[int, ...]) -> np.ndarray | None:
    """Return a constant in the shape `sizes` of a layer norm's axes; None if it varies along other axes."""
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


def _write_plainly(op: Builder, node: ir.Node, norm: Standardisation) -> None:
    """Write a norm that includes its scale and bias in the plain order: standardise, then scale, then shift."""
    old, axes = norm.y, list(norm.axes)
    makers = [maker for value in node.inputs if value is not None and (maker := value.producer()) is not None]
    layer = shared_layer(node, *[maker for maker in makers if maker is not norm.x.producer()])
    with op.at(layer, before=node):
        top = op.Sub(norm.x, op.ReduceMean(norm.x, axes, keepdims=1)) if norm.centred else norm.x
        variance = op.ReduceMean(op.Mul(top, top), axes, keepdims=1)
        y = op.Div(top, op.Sqrt(op.Add(variance, np.array(norm.eps, np.float32))))
        y = y if norm.scale is None else op.Mul(y, norm.scale)
        y = y if norm.bias is None or not norm.bias.any() else op.Add(y, norm.bias)
    y.type, y.shape = old.type, old.shape
    old.replace_all_uses_with(y, replace_graph_outputs=True)
    old.name, y.name = f"{old.name}.holds_affine", old.name


def _over_space(norm: Standardisation) -> bool:
    """Return whether the norm is over all axes but N and C of [N, C, ...], with constants per channel.

    Two norms have this form: instance norm written out, and filter response norm (arXiv:1911.09737), which has no
    mean.
    """
    rank = len(norm.x.shape or ())
    if rank < 3 or norm.axes != tuple(range(2, rank)):
        return False
    after = affine_after(norm.y)
    held = [array for array in (after.scale, after.bias) if array is not None]
    return all(per_channel(array, norm.y) is not None for array in held) if held else rank > 3


def _layer_norm(op: Builder, node: ir.Node, norm: Standardisation) -> bool:
    """(x - mean)/sqrt(var + eps)*scale + bias -> LayerNormalization; over channels, its scale and bias as one node."""
    if norm.axes == (1,) and not norm.trailing:
        return channel_affine(op, norm.y, "layer", node)
    sizes = norm.sizes
    if not norm.trailing or not sizes:
        return False
    after = _parameters(norm, sizes)
    scale = after.scale if after.scale is not None else np.ones(sizes, np.float32)
    bias = after.bias if after.bias is not None else np.zeros(sizes, np.float32)
    with op.at(layer_of(node, after.y), before=node_after(op.graph, after.y.producer())):
        y = op.LayerNormalization(norm.x, scale, bias, axis=-len(sizes), epsilon=norm.eps)
    replace_by_norm(after.y, y, norm.x, "layer")
    return True


def _parameters(norm: Standardisation, sizes: tuple[int, ...]) -> Affine:
    """Return scale and bias of a standardisation in the shape `sizes`, where they are constants of this shape."""
    after = affine_after(norm.y)
    scale = over_axes(after.scale, sizes)
    if after.scale is not None and scale is None:
        return Affine(norm.y)
    bias = over_axes(filled(after.bias, sizes), sizes) if scale is not None else over_axes(after.bias, sizes)
    if after.bias is not None and bias is None:
        product = only_reader(norm.y, "Mul")
        return Affine(product.outputs[0] if scale is not None and product is not None else norm.y, scale)
    return Affine(after.y, scale, bias)


def _root_mean_square(op: Builder, node: ir.Node, norm: Standardisation) -> bool:
    """x/sqrt(mean of x^2 + eps)*scale: the scale becomes the second operand, in the shape of the axes.

    Absent, it is ones.

    Over channels the scale is [C, 1, ...].
    """
    if norm.axes == (1,) and not norm.trailing:
        sizes = (norm.sizes + (1,) * (len(norm.x.shape or ()) - 2)) if norm.sizes else ()
    else:
        sizes = norm.sizes if norm.trailing else ()
    if not sizes:
        return False
    product = only_reader(norm.y, "Mul")
    scale = over_axes(affine_after(norm.y).scale, sizes)
    old = product.outputs[0] if scale is not None and product is not None else norm.y
    with op.at(layer_of(node, old), before=node_after(op.graph, old.producer())):
        y = op.Mul(norm.y, scale if scale is not None else np.ones(sizes, np.float32))
    replace_by_norm(old, y, norm.y, "rms")
    node.metadata_props[KIND] = XHAT
    return True


def _bare_layer_norm(op: Builder, node: ir.Node) -> bool:
    """Give a LayerNormalization without bias whose scale is 1 a bias of zeros, to train."""
    scale = array_of(node.inputs[1])
    if (len(node.inputs) > 2 and node.inputs[2] is not None) or scale is None or (scale != 1).any():
        return False
    node.resize_inputs(3)
    node.replace_input_with(2, op.constant(np.zeros(scale.shape, scale.dtype)))
    return True


def _tracked_instance_norm(node: ir.Node) -> bool:
    """Write an instance norm with stored statistics as the batch norm that computes the same.

    PyTorch exports it as a batch norm of [1, N*C, ...], between two Reshapes, with parameters repeated N times.
    """
    before, after = made_by(node.inputs[0], "Reshape"), only_reader(node.outputs[0], "Reshape")
    x = before.inputs[0] if before is not None else None
    if x is None or after is None or x.shape is None or after.outputs[0].shape is None:
        return False
    shape, tiles = dims(x), [made_by(value, "Tile") for value in node.inputs[1:]]
    if shape[0] != BATCH or dims(node.inputs[0])[2:] != shape[2:] or dims(after.outputs[0]) != shape:
        return False
    parameters = [tile.inputs[0] if tile is not None else None for tile in tiles]
    arrays = [array_of(value) for value in parameters]
    if any(array is None or array.shape != (shape[1],) for array in arrays):
        return False
    for position, value in enumerate([x, *parameters]):
        node.replace_input_with(position, value)
    node.outputs[0].shape = x.shape
    assert node.graph is not None
    node.graph.remove([tile for tile in tiles if tile is not None and not tile.outputs[0].uses()], safe=True)
    replace(node.graph, after, node.outputs[0])
    node.metadata_props[LAYER] = layer_name(node)
    return True
