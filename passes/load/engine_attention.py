"""Write onnxruntime's fused Attention as matrix products and a Softmax."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ttac.passes.load.engine_operators import Writer, given, unfused

FILTER = -10000.0
"""Default of the number that a mask adds to the scores of masked positions."""


@unfused("Attention")
def _attention(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = softmax(q k^T * scale + mask) v for each head, where q, k, v are linear in x.

    Not covered: keys of earlier calls, causal attention, other sizes of v, and masks of other forms than [N, S].
    """
    weights = given(node, 1)
    others = [name for name in ("unidirectional", "do_rotary", "past_present_share_buffer", "qkv_hidden_sizes")
              if name in node.attributes and node.attributes[name].value]  # fmt: skip
    if weights is None or weights.shape is None or others or any(given(node, place) for place in range(4, 8)):
        return None
    mask = given(node, 3)
    if mask is not None and (mask.shape is None or len(mask.shape) != 2):
        return None
    heads, width = node.attributes.get_int("num_heads"), int(str(weights.shape[1])) // 3
    scale = node.attributes.get_float("scale", 0.0) or 1 / math.sqrt(width // heads)
    joined = op("MatMul", node.inputs[0], weights)
    joined = joined if given(node, 2) is None else op("Add", joined, given(node, 2))
    q, k, v = (_of_heads(op, joined, part, width, heads) for part in range(3))
    scores = op("Mul", op("MatMul", q, op("Transpose", k, perm=[0, 1, 3, 2])), scale)
    if mask is not None:
        below = node.attributes.get_float("mask_filter_value", FILTER)
        masked = op("Mul", op("Sub", 1.0, op("Cast", mask, to=1)), below)
        scores = op("Add", scores, op.along("Unsqueeze", masked, [1, 2], 13))
    mixed = op("Transpose", op("MatMul", op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    return [op("Reshape", mixed, np.array([0, 0, width], np.int64))]


def _of_heads(op: Writer, joined: ir.Value, part: int, width: int, heads: int) -> ir.Value:
    """Return the queries, keys or values [N, heads, S, width / heads]."""
    own = op("Slice", joined, [part * width], [(part + 1) * width], [2])
    return op("Transpose", op("Reshape", own, np.array([0, 0, heads, width // heads], np.int64)), perm=[0, 2, 1, 3])
