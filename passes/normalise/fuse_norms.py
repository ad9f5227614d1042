"""Write as one operator the norms that exporters spell in several, and give those without scale and bias one.

After this room the parameters of every norm are inputs of one node, scale second and bias third:

    LayerNormalization, InstanceNormalization                          as they stand
    BatchNormalization with mean 0, variance 1 and epsilon 0           the scale and bias [C] behind a norm over groups
                                                                       or channels, or of a folded batch norm
    Mul by a constant                                                  the scale behind x/sqrt(mean of x^2 + eps)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.layer_names import CONVOLUTIONS, FOLDED, FOLDED_EPSILON
from ttac.passes.graph.match import (
    Affine,
    Standardised,
    affine_after,
    array_of,
    made_by,
    only_reader,
    standardised,
    with_constant,
)
from ttac.passes.graph.reshaping import reshape
from ttac.passes.graph.shapes import dims, sample_size

ROOM = "fuse"
KIND, XHAT = "ttac.norm", "xhat"
"""Node metadata: the kind of norm whose scale and bias the node holds; XHAT if another node holds them."""

ACTS = frozenset({"Conv", "ConvTranspose", "Relu", "Clip", "Add", "Concat", "MaxPool", "AveragePool"})
"""What may stand before a batch norm that was folded to a scale and a shift."""


def fuse_norms(model: ir.Model) -> int:
    """Rewrite `model` in place; returns how many norms were gathered."""
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    for node in list(model.graph):
        found = standardised(node)
        if isinstance(found, Standardised) and found.woven:
            _unwoven(op, node, found)
    common.RemoveUnusedNodesPass()(model)
    count = sum(_fused(op, node) for node in list(model.graph) if node.graph is not None)
    common.RemoveUnusedNodesPass()(model)
    return count


def fuse_affines(model: ir.Model) -> None:
    """Write the scales and shifts that batch norms were folded to as one operator each, in place.

    Before a simplifier sees them, which would fold them into the convolutions in front.
    """
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    for node in [node for node in model.graph if node.op_type == "Mul"]:
        _folded_batch_norm(op, node)
    common.RemoveUnusedNodesPass()(model)


def _fused(op: Builder, node: ir.Node) -> bool:
    if node.op_type == "InstanceNormalization":
        return _group_norm(op, node)
    if node.op_type == "GroupNormalization":
        return _whole_group_norm(op, node)
    if node.op_type == "LayerNormalization":
        return _bare_layer_norm(op, node)
    found = standardised(node)
    if isinstance(found, Standardised):
        if _over_groups(found):
            return _split_group_norm(op, node, found)
        if _over_space(found):
            return _channel_affine(op, found.y, "instance" if found.centred else "rms", node)
        return _layer_norm(op, node, found) if found.centred else _root_mean_square(op, node, found)
    return node.op_type == "Mul" and _folded_batch_norm(op, node)


def per_channel(array: np.ndarray | None, value: ir.Value) -> np.ndarray | None:
    """A constant [..., C, 1, ...] as [C], where it holds one number for each channel of `value` [N, C, ...]."""
    if array is None or value.shape is None or len(value.shape) < 3:
        return None
    channels, rank = value.shape[1], len(value.shape)
    wanted = (channels, *[1] * (rank - 2))
    shape = array.shape[max(0, array.ndim - rank) :]
    if tuple(size for size in shape[-len(wanted) :]) != wanted or array.size != channels:
        return None
    return array.reshape(-1)


def spread(array: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """A shift in `shape` where it is one number, as an exporter leaves a bias that is absent."""
    return array if array is None or array.size > 1 else np.full(shape, array.reshape(-1)[0], array.dtype)


def over(array: np.ndarray | None, sizes: tuple[int, ...]) -> np.ndarray | None:
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


def _unwoven(op: Builder, node: ir.Node, found: Standardised) -> None:
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
    old.name, y.name = f"{old.name}.woven", old.name


def _over_groups(found: Standardised) -> bool:
    """Whether channels that come last are split in groups, [N, ..., G, C/G] over all but N and G, as Keras does."""
    rank = len(found.x.shape or ())
    return found.centred and rank > 3 and found.axes == (*range(1, rank - 2), rank - 1)


def _split_group_norm(op: Builder, node: ir.Node, found: Standardised) -> bool:
    """The same with the channels first: Reshape, InstanceNormalization, Reshape, scale and shift per channel."""
    after, shape = affine_after(found.y), dims(found.x)
    batch, *space, groups, size = shape
    if not isinstance(groups, int) or not isinstance(size, int):
        return False
    held = [_by_channel(array, groups, size) for array in (after.scale, after.bias)]
    if any(array is None for array, given in zip(held, (after.scale, after.bias), strict=True) if given is not None):
        after, held = Affine(found.y), [None, None]
    rank, layer = len(shape), layer_of(node, after.y)
    first = [0, rank - 2, rank - 1, *range(1, rank - 2)]
    with op.at(layer, before=_next(op.graph, after.y)):
        x = _channels_first(found.x)
        x = x if x is not None else op.Transpose(found.x, perm=first)
        apart = reshape(op, x, [batch, groups, sample_size(found.x.shape or ir.Shape([])) // groups])
        ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
        normal = op.InstanceNormalization(apart, ones, zeros, epsilon=found.eps)
        y = _affine(op, reshape(op, normal, [batch, groups * size, *space]), *held)
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
    """[N, C, ...] where `value` is that with its channels moved last and then split."""
    split = made_by(value, "Reshape")
    moved = made_by(split.inputs[0], "Transpose") if split is not None else None
    x = moved.inputs[0] if moved is not None else None
    if moved is None or x is None or x.shape is None or dims(moved.outputs[0])[:-1] != dims(value)[:-2]:
        return None
    rank = len(x.shape)
    return x if moved.attributes.get_ints("perm", ()) == (0, *range(2, rank), 1) else None


def _transposed_back(value: ir.Value) -> Iterator[ir.Value]:
    """Where `value` [N, ..., G, C/G] is joined to [N, ..., C] and transposed to [N, C, ...] again."""
    for joined in [use.node for use in value.uses() if use.node.op_type == "Reshape"]:
        whole = joined.outputs[0]
        if whole.shape is None or dims(whole)[:-1] != dims(value)[:-2]:
            continue
        rank = len(whole.shape)
        for moved in [use.node for use in whole.uses() if use.node.op_type == "Transpose"]:
            if moved.attributes.get_ints("perm", ()) == (0, rank - 1, *range(1, rank - 1)):
                yield moved.outputs[0]


def _by_channel(array: np.ndarray | None, groups: int, size: int) -> np.ndarray | None:
    """A constant [..., G, C/G] as [C]; None if it varies along other axes."""
    if array is None or (array.ndim > 2 and any(length != 1 for length in array.shape[:-2])):
        return None
    tail = array.reshape(array.shape[-2:]) if array.ndim > 1 else array
    return np.ascontiguousarray(np.broadcast_to(tail, (groups, size))).reshape(-1).astype(np.float32)


def _over_space(found: Standardised) -> bool:
    """Whether each channel is taken by itself, [N, C, ...] over all but N and C, and no constant varies within one.

    Instance norm written out is, and filter response norm (arXiv:1911.09737), which does without the mean.
    """
    rank = len(found.x.shape or ())
    if rank < 3 or found.axes != tuple(range(2, rank)):
        return False
    after = affine_after(found.y)
    held = [array for array in (after.scale, after.bias) if array is not None]
    return all(per_channel(array, found.y) is not None for array in held) if held else rank > 3


def _layer_norm(op: Builder, node: ir.Node, found: Standardised) -> bool:
    """(x - mean)/sqrt(var + eps)*scale + bias -> LayerNormalization; over channels, its scale and bias as one node."""
    if found.axes == (1,) and not found.trailing:
        return _channel_affine(op, found.y, "layer", node)
    sizes = found.sizes
    if not found.trailing or not sizes:
        return False
    after = _parameters(found, sizes)
    scale = after.scale if after.scale is not None else np.ones(sizes, np.float32)
    bias = after.bias if after.bias is not None else np.zeros(sizes, np.float32)
    with op.at(layer_of(node, after.y), before=_next(op.graph, after.y)):
        y = op.LayerNormalization(found.x, scale, bias, axis=-len(sizes), epsilon=found.eps)
    _replace(op, after.y, y, found.x, "layer")
    return True


def _parameters(found: Standardised, sizes: tuple[int, ...]) -> Affine:
    """Scale and bias of a standardisation in the shape `sizes`, as far as they are constants of that shape."""
    after = affine_after(found.y)
    scale = over(after.scale, sizes)
    if after.scale is not None and scale is None:
        return Affine(found.y)
    bias = over(spread(after.bias, sizes), sizes) if scale is not None else over(after.bias, sizes)
    if after.bias is not None and bias is None:
        product = only_reader(found.y, "Mul")
        return Affine(product.outputs[0] if scale is not None and product is not None else found.y, scale)
    return Affine(after.y, scale, bias)


def _root_mean_square(op: Builder, node: ir.Node, found: Standardised) -> bool:
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
    scale = over(affine_after(found.y).scale, sizes)
    old = product.outputs[0] if scale is not None and product is not None else found.y
    with op.at(layer_of(node, old), before=_next(op.graph, old)):
        y = op.Mul(found.y, scale if scale is not None else np.ones(sizes, np.float32))
    _replace(op, old, y, found.y, "rms")
    node.metadata_props[KIND] = XHAT
    return True


def _group_norm(op: Builder, node: ir.Node) -> bool:
    """Reshape, InstanceNormalization, Reshape back, scale and shift per channel -> the last two as one node."""
    x, scale, bias = node.inputs
    before, after = made_by(x, "Reshape"), only_reader(node.outputs[0], "Reshape")
    if before is None or after is None or before.inputs[0] is None or before.inputs[0].shape != after.outputs[0].shape:
        return False
    ones, zeros = array_of(scale), array_of(bias)
    if ones is None or zeros is None or (ones != 1).any() or zeros.any():
        return False
    return _channel_affine(op, after.outputs[0], "group", node)


def _whole_group_norm(op: Builder, node: ir.Node) -> bool:
    """GroupNormalization -> an InstanceNormalization between two Reshapes, which engines have a kernel for.

    Until opset 20 its scale and bias are one number a group, and stay with it; from opset 21 on one a channel.
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
            y = _affine(op, whole, *parts)
    core, last = normal.producer(), y.producer()
    assert core is not None and last is not None
    core.metadata_props[KIND] = "group" if per_group else XHAT
    if not per_group:
        core.metadata_props[LAYER], last.metadata_props[KIND] = f"{layer}.{XHAT}", "group"
    old.replace_all_uses_with(y, replace_graph_outputs=True)
    old.name, y.name, last.name = f"{old.name}.whole", old.name, old.name
    return True


def _channel_affine(op: Builder, value: ir.Value, kind: str, node: ir.Node) -> bool:
    """One BatchNormalization without statistics for the constants per channel behind `value`, 1 and 0 without any."""
    if value.shape is None or len(value.shape) < 3 or not isinstance(value.shape[1], int):
        return False
    after = affine_after(value)
    scale, bias = per_channel(after.scale, value), per_channel(after.bias, value)
    if scale is not None and after.bias is not None and after.bias.size == 1:
        bias = spread(after.bias, (value.shape[1],))
    if (after.scale is not None and scale is None) or (after.bias is not None and bias is None):
        after, scale, bias = Affine(value), None, None
    layer = layer_of(node, after.y)
    with op.at(layer, before=_next(op.graph, after.y)):
        y = _affine(op, value, scale, bias)
    _replace(op, after.y, y, value, kind)
    node.metadata_props[LAYER], node.metadata_props[KIND] = f"{layer}.{XHAT}", XHAT
    return True


def _folded_batch_norm(op: Builder, node: ir.Node) -> bool:
    """x*scale + bias with one number a channel, behind a layer -> one BatchNormalization without statistics.

    Where the file tells that it was a batch norm, or it stands right behind a convolution, it is marked as folded.  If
    it tells, x may be [N, C] or [N, ..., C] as well, and be read elsewhere too, as before a residual block.
    """
    parts, total = with_constant(node), only_reader(node.outputs[0], "Add")
    shift = with_constant(total)
    if parts is None or total is None or shift is None:
        return False
    value, told = parts[0], node.metadata_props.get(FOLDED, "")
    scale, bias = (per_channel(array, value) for array in (parts[1], shift[1]))
    last = bool(told) and (scale is None or bias is None)
    if last:
        scale, bias = (_per_last(array, value) for array in (parts[1], shift[1]))
    if scale is None or bias is None or not (told or (made_by(value, *ACTS) and len(value.uses()) == 1)):
        return False
    told = told or ("?" if made_by(value, *CONVOLUTIONS) else "")
    y, x, rank = total.outputs[0], value, len(value.shape or ())
    with op.at(layer_of(node, y) if told in ("", "?") else told, before=_next(op.graph, y)):
        if last and rank > 2:
            x = op.Transpose(value, perm=[0, rank - 1, *range(1, rank - 1)])
        new = norm = _affine(op, x, scale, bias)
        if last and rank > 2:
            new = op.Transpose(norm, perm=[0, *range(2, rank), 1])
    made = norm.producer()
    assert made is not None
    made.metadata_props[KIND] = "affine"
    if told:
        made.metadata_props[FOLDED] = told
    if epsilon := node.metadata_props.get(FOLDED_EPSILON):
        made.metadata_props[FOLDED_EPSILON] = epsilon
    _rename(y, new)
    return True


def _per_last(array: np.ndarray, value: ir.Value) -> np.ndarray | None:
    """A constant [..., C] as [C], where it holds one number for each channel of `value` [N, ..., C]."""
    if value.shape is None or array.size != value.shape[-1] or array.shape[-1:] != (array.size,):
        return None
    return array.reshape(-1)


def _rename(old: ir.Value, new: ir.Value) -> None:
    """Let `new` be read where `old` was, under its name."""
    node = new.producer()
    assert node is not None
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name, new.name = f"{old.name}.spelled", old.name
    node.name = new.name


def _affine(op: Builder, x: ir.Value, scale: np.ndarray | None, bias: np.ndarray | None) -> ir.Value:
    assert x.shape is not None
    channels = int(x.shape[1])  # type: ignore[arg-type]
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    scale, bias = ones if scale is None else scale, zeros if bias is None else bias
    return op.BatchNormalization(x, scale, bias, zeros, ones, epsilon=0.0)


def _bare_layer_norm(op: Builder, node: ir.Node) -> bool:
    """A LayerNormalization without bias whose scale is 1 has no affine: it gets a bias of zeros to train."""
    scale = array_of(node.inputs[1])
    if (len(node.inputs) > 2 and node.inputs[2] is not None) or scale is None or (scale != 1).any():
        return False
    node.resize_inputs(3)
    node.replace_input_with(2, op.constant(np.zeros(scale.shape, scale.dtype)))
    return True


def layer_of(node: ir.Node, y: ir.Value) -> str:
    """The layer of a norm from `node` to the value `y`: what the names of both ends share, else that of the last."""
    last = y.producer()
    assert last is not None
    return shared_layer(last, node)


def shared_layer(node: ir.Node, *others: ir.Node) -> str:
    """The modules that the layers of all these nodes lie in, `block1.norm`; that of the first where there is none."""
    names = [n.metadata_props.get(LAYER, "").split(".") for n in (node, *others)]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
    return ".".join(parts[0] for parts in shared) or ".".join(names[0])


def _next(graph: ir.Graph, value: ir.Value) -> ir.Node | None:
    """The node behind the one that makes `value`."""
    nodes = list(graph)
    position = nodes.index(value.producer()) + 1  # type: ignore[arg-type]
    return nodes[position] if position < len(nodes) else None


def _replace(op: Builder, old: ir.Value, new: ir.Value, x: ir.Value, kind: str) -> None:
    """Let `new`, a norm of `x`, be read where `old` was, under its name; `old` may be `x` itself."""
    node = new.producer()
    assert node is not None
    node.metadata_props[KIND] = kind
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    node.replace_input_with(0, x)
    if old is not x or new.is_graph_output():
        old.name, new.name = f"{old.name}.spelled", old.name
    node.name = new.name
