"""The order of the channels in blocks, in standard operators."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.graph.builder import Builder


def blocked(op: Builder, x: ir.Value, shape: Sequence[int | str], block: int) -> ir.Value:
    """[N, C, H, W] -> the same in blocks, under the same shape."""
    channels, height, width = (int(size) for size in shape[1:])
    return _turned(op, x, shape, [channels // block, block, height, width], [0, 1, 3, 4, 2])


def plain(op: Builder, x: ir.Value, shape: Sequence[int | str], block: int) -> ir.Value:
    """The inverse of `blocked`."""
    channels, height, width = (int(size) for size in shape[1:])
    return _turned(op, x, shape, [channels // block, height, width, block], [0, 1, 4, 2, 3])


def _turned(
    op: Builder, x: ir.Value, shape: Sequence[int | str], split: Sequence[int], perm: Sequence[int]
) -> ir.Value:
    """The samples of x divided by `split`, with the axes in another order, under the shape [N, C, H, W]."""
    made = op.Reshape(op.Transpose(op.Reshape(x, [-1, *split]), perm=list(perm)), [-1, *map(int, shape[1:])])
    made.shape = ir.Shape(list(shape))
    return made
