"""Write a group norm, in any of its three spellings, as InstanceNormalization with a scale and a bias behind it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.match import array_of, made_by, only_reader
from ttac.passes.graph.reshaping import reshape
from ttac.passes.graph.rewire import node_after
from ttac.passes.graph.shapes import dims, sample_size
from ttac.passes.normalise.affine_nodes import (
    KIND,
    XHAT,
    affine,
    channel_affine,
    layer_of,
)
from ttac.passes.normalise.norm_patterns import Affine, Standardisation, affine_after


def group_norm(op: Builder, node: ir.Node) -> bool:
    """Reshape, InstanceNormalization, Reshape back, scale and shift per channel -> the last two as one node."""
    x, scale, bias = node.inputs
    before, after = made_by(x, "Reshape"), only_reader(node.outputs[0], "Reshape")
    if before is None or after is None or before.inputs[0] is None or before.inputs[0].shape != after.outputs[0].shape:
        return False
    ones, zeros = array_of(scale), array_of(bias)
    if ones is None or zeros is None or (ones != 1).any() or zeros.any():
        return False
    return channel_affine(op, after.outputs[0], "group", node)


def whole_group_norm(op: Builder, node: ir.Node) -> bool:
    """GroupNormalization -> an InstanceNormalization between two Reshapes, which engines have a kernel for.

    Until opset 20 its scale and bias have one number per group, and stay in the InstanceNormalization. From opset 21
    on they have one number per channel.
    """
    x, scale, bias = node.inputs
    groups, parts = node.attributes.get_int("num_groups", 0), (array_of(scale), array_of(bias))
    if x is None or x.shape is None or not groups or parts[0] is None or parts[1] is None:
        return False
    layer, per_group = node.metadata_props.get(LAYER, ""), op.opset < 21
    inner = parts if per_group else (np.ones(groups, np.float32), np.zeros(groups, np.float32))
    old = node.outputs[0]
    with op.at(layer, before=node):
        apart = reshape(op, x, [dims(x)[0], groups, sample_size(x.shape) // groups])
        eps = node.attributes.get_float("epsilon", 1e-5)
        normal = op.InstanceNormalization(apart, *inner, epsilon=eps)
        y = whole = reshape(op, normal, dims(x))
        if not per_group:
            y = affine(op, whole, *parts)
    core, last = normal.producer(), y.producer()
    assert core is not None and last is not None
    core.metadata_props[KIND] = "group" if per_group else XHAT
    if not per_group:
        core.metadata_props[LAYER], last.metadata_props[KIND] = f"{layer}.{XHAT}", "group"
    old.replace_all_uses_with(y, replace_graph_outputs=True)
    old.name, y.name, last.name = f"{old.name}.whole", old.name, old.name
    return True


def over_groups(norm: Standardisation) -> bool:
    """Return whether the norm is over all axes but N and G of [N, ..., G, C/G].

    Keras splits channels that come last into groups in this way.
    """
    rank = len(norm.x.shape or ())
    return norm.centred and rank > 3 and norm.axes == (*range(1, rank - 2), rank - 1)


def split_group_norm(op: Builder, node: ir.Node, norm: Standardisation) -> bool:
    """Write a norm of Keras' form with the channels first.

    The result is Reshape, InstanceNormalization, Reshape, scale and shift per channel.
    """
    after, shape = affine_after(norm.y), dims(norm.x)
    batch, *space, groups, size = shape
    if not isinstance(groups, int) or not isinstance(size, int):
        return False
    parameters = [_by_channel(array, groups, size) for array in (after.scale, after.bias)]
    stated = (after.scale, after.bias)
    if any(array is None for array, original in zip(parameters, stated, strict=True) if original is not None):
        after, parameters = Affine(norm.y), [None, None]
    rank, layer = len(shape), layer_of(node, after.y)
    first = [0, rank - 2, rank - 1, *range(1, rank - 2)]
    with op.at(layer, before=node_after(op.graph, after.y.producer())):
        x = _channels_first(norm.x)
        x = x if x is not None else op.Transpose(norm.x, perm=first)
        apart = reshape(op, x, [batch, groups, sample_size(norm.x.shape or ir.Shape([])) // groups])
        ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
        normal = op.InstanceNormalization(apart, ones, zeros, epsilon=norm.eps)
        y = affine(op, reshape(op, normal, [batch, groups * size, *space]), *parameters)
        core, last = normal.producer(), y.producer()
        back = op.Transpose(reshape(op, y, [batch, groups, size, *space]), perm=[0, *range(3, rank), 1, 2])
    assert core is not None and last is not None
    core.metadata_props[KIND], core.metadata_props[LAYER] = XHAT, f"{layer}.{XHAT}"
    last.metadata_props[KIND] = "group"
    last.name = after.y.name
    for value in _transposed_back(after.y):
        value.replace_all_uses_with(y, replace_graph_outputs=True)
    back.type, back.shape = after.y.type, after.y.shape
    after.y.replace_all_uses_with(back, replace_graph_outputs=True)
    return True


def _channels_first(value: ir.Value) -> ir.Value | None:
    """Return [N, C, ...] where `value` is this tensor with its channels moved last and then split."""
    split = made_by(value, "Reshape")
    moved = made_by(split.inputs[0], "Transpose") if split is not None else None
    x = moved.inputs[0] if moved is not None else None
    if moved is None or x is None or x.shape is None or dims(moved.outputs[0])[:-1] != dims(value)[:-2]:
        return None
    rank = len(x.shape)
    return x if moved.attributes.get_ints("perm", ()) == (0, *range(2, rank), 1) else None


def _transposed_back(value: ir.Value) -> Iterator[ir.Value]:
    """Yield each value that joins `value` [N, ..., G, C/G] to [N, ..., C] and transposes it to [N, C, ...] again."""
    for joined in [use.node for use in value.uses() if use.node.op_type == "Reshape"]:
        whole = joined.outputs[0]
        if whole.shape is None or dims(whole)[:-1] != dims(value)[:-2]:
            continue
        rank = len(whole.shape)
        for moved in [use.node for use in whole.uses() if use.node.op_type == "Transpose"]:
            if moved.attributes.get_ints("perm", ()) == (0, rank - 1, *range(1, rank - 1)):
                yield moved.outputs[0]


def _by_channel(array: np.ndarray | None, groups: int, size: int) -> np.ndarray | None:
    """Return a constant [..., G, C/G] as [C]; None if it varies along other axes."""
    if array is None or (array.ndim > 2 and any(length != 1 for length in array.shape[:-2])):
        return None
    tail = array.reshape(array.shape[-2:]) if array.ndim > 1 else array
    return np.ascontiguousarray(np.broadcast_to(tail, (groups, size))).reshape(-1).astype(np.float32)
