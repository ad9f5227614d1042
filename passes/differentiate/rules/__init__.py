"""The gradient rules, one function per operator, by family; importing this package registers all of them."""

from ttac.passes.differentiate.rules import (
    activations,
    channels,
    convolution,
    elementwise,
    entropies,
    indexing,
    linear,
    normalization,
    pooling,
    recurrent,
    reductions,
    resize,
    rounding,
    shape_operators,
)
from ttac.passes.operators import channel_sums, conv_gradients, entropy, gate_masks, pool_gradients

__all__ = [
    "activations",
    "channels",
    "convolution",
    "elementwise",
    "entropies",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "recurrent",
    "reductions",
    "resize",
    "rounding",
    "shape_operators",
]

# The rules write in these vocabularies.
VOCABULARIES = (channel_sums, conv_gradients, entropy, gate_masks, pool_gradients)
