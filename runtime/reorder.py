"""Weights in the engine's blocked layout, made of stored ones by NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ORDERS = ("OIHWBiBo", "OIHWBo")
"""Layouts of a convolution's kernel [O, I, h, w]: in- and outputs in blocks, or outputs only."""


def reordered(
    weight: np.ndarray, block: int, order: str, taps: Sequence[Sequence[int]] = (), groups: int = 0
) -> np.ndarray:
    """The kernel `weight` [O, I, h, w] in the layout `order` with blocks of `block` channels.

    Zeros fill the last block of the outputs, and of the inputs where they are in blocks.

    Args:
        taps: for each spatial axis, the taps that are kept, in their new order; empty for all of them.
        groups: groups of outputs in which in- and outputs are exchanged first; 0 for no exchange.
    """
    if taps:
        weight = weight[:, :, list(taps[0])][:, :, :, list(taps[1])]
    if groups:
        outputs, inputs, *kernel = weight.shape
        split = weight.reshape(groups, outputs // groups, inputs, *kernel)
        weight = split.swapaxes(1, 2).reshape(groups * inputs, outputs // groups, *kernel)
    fills = (-weight.shape[0] % block, -weight.shape[1] % block if order == "OIHWBiBo" else 0)
    weight = np.pad(weight, [(0, fills[0]), (0, fills[1]), (0, 0), (0, 0)]) if any(fills) else weight
    outputs, inputs, height, width = weight.shape
    blocks = weight.reshape(outputs // block, block, inputs, height, width)
    if order == "OIHWBo":
        made = blocks.transpose(0, 2, 3, 4, 1)
    else:
        made = blocks.reshape(outputs // block, block, inputs // block, block, height, width).transpose(
            0, 2, 4, 5, 3, 1
        )
    return np.ascontiguousarray(made).reshape(weight.shape)
