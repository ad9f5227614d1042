"""The order of the channels in blocks, in standard operators."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.graph.builder import Builder


def blocked(op: Builder, x: ir.Value, shape: Sequence[int | str], block: int) -> ir.Value:
    """[N, C, H, W] -> the same in blocks, under the same shape."""
    channels, height, width = (int(size) for size in shape[1:])
    turned = op.Transpose(op.Reshape(x, [-1, channels // block, block, height, width]), perm=[0, 1, 3, 4, 2])
    made = op.Reshape(turned, [-1, channels, height, width])
    made.shape = ir.Shape(list(shape))
    return made


def plain(op: Builder, x: ir.Value, shape: Sequence[int | str], block: int) -> ir.Value:
    """The inverse of `blocked`."""
    channels, height, width = (int(size) for size in shape[1:])
    turned = op.Transpose(op.Reshape(x, [-1, channels // block, height, width, block]), perm=[0, 1, 4, 2, 3])
    made = op.Reshape(turned, [-1, channels, height, width])
    made.shape = ir.Shape(list(shape))
    return made
