"""The scale and bias of a norm as one node, and the marks that say which norm the node belongs to."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.rewire import node_after
from ttac.passes.normalise.norm_patterns import Affine, affine_after

KIND, XHAT = "ttac.norm", "xhat"
"""Node metadata: the kind of norm whose scale and bias the node has; XHAT if another node has them."""


def per_channel(array: np.ndarray | None, value: ir.Value) -> np.ndarray | None:
    """Return a constant [..., C, 1, ...] as [C], where it has one number for each channel of `value` [N, C, ...].

    Else None.
    """
    if array is None or value.shape is None or len(value.shape) < 3:
        return None
    channels, rank = value.shape[1], len(value.shape)
    tail = (channels, *[1] * (rank - 2))
    shape = array.shape[max(0, array.ndim - rank) :]
    if tuple(size for size in shape[-len(tail) :]) != tail or array.size != channels:
        return None
    return array.reshape(-1)


def filled(array: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a shift of one number as an array of `shape`, and any other shift unchanged.

    Exporters write an absent bias as one number.
    """
    return array if array is None or array.size > 1 else np.full(shape, array.reshape(-1)[0], array.dtype)


def affine(op: Builder, x: ir.Value, scale: np.ndarray | None, bias: np.ndarray | None) -> ir.Value:
    """Return `x` times scale plus bias, [C] each, as BatchNormalization without statistics.

    An absent scale is 1, an absent bias 0. Mean 0, variance 1 and epsilon 0 leave nothing else to compute.
    """
    assert x.shape is not None
    channels = int(x.shape[1])  # type: ignore[arg-type]
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    scale, bias = ones if scale is None else scale, zeros if bias is None else bias
    return op.BatchNormalization(x, scale, bias, zeros, ones, epsilon=0.0)


def channel_affine(op: Builder, value: ir.Value, kind: str, node: ir.Node) -> bool:
    """Put the constants per channel behind `value` into one BatchNormalization without statistics.

    Without constants the scale is 1 and the bias 0. `kind` is the norm that `node` completes. Returns False if
    `value` has no channels.
    """
    if value.shape is None or len(value.shape) < 3 or not isinstance(value.shape[1], int):
        return False
    after = affine_after(value)
    scale, bias = per_channel(after.scale, value), per_channel(after.bias, value)
    if scale is not None and after.bias is not None and after.bias.size == 1:
        bias = filled(after.bias, (value.shape[1],))
    if (after.scale is not None and scale is None) or (after.bias is not None and bias is None):
        after, scale, bias = Affine(value), None, None
    layer = layer_of(node, after.y)
    with op.at(layer, before=node_after(op.graph, after.y.producer())):
        y = affine(op, value, scale, bias)
    replace_by_norm(after.y, y, value, kind)
    node.metadata_props[LAYER], node.metadata_props[KIND] = f"{layer}.{XHAT}", XHAT
    return True


def layer_of(node: ir.Node, y: ir.Value) -> str:
    """Return the layer of a norm from `node` to the value `y`: the common part of both names, or the last name."""
    last = y.producer()
    assert last is not None
    return shared_layer(last, node)


def shared_layer(node: ir.Node, *others: ir.Node) -> str:
    """Return the module that contains the layers of all these nodes, `block1.norm`.

    The first layer if there is none.
    """
    names = [n.metadata_props.get(LAYER, "").split(".") for n in (node, *others)]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
    return ".".join(parts[0] for parts in shared) or ".".join(names[0])


def replace_by_norm(old: ir.Value, new: ir.Value, x: ir.Value, kind: str) -> None:
    """Let all readers of `old` read `new`, a norm of `x`, under the old name; `old` may be `x` itself."""
    node = new.producer()
    assert node is not None
    node.metadata_props[KIND] = kind
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    node.replace_input_with(0, x)
    if old is not x or new.is_graph_output():
        old.name, new.name = f"{old.name}.spelled", old.name
    node.name = new.name
