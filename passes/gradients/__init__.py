"""The gradient rules, one function per operator, by family; importing this package registers all of them."""

from ttac.passes import activations as _activations
from ttac.passes import channels as _channels
from ttac.passes import convolution as _convolution
from ttac.passes import entropies as _entropies
from ttac.passes import gelus as _gelus  # noqa: F401  (registers its operator)
from ttac.passes import pooling as _pooling
from ttac.passes.gradients import (
    activations,
    channels,
    convolution,
    elementwise,
    entropies,
    indexing,
    linear,
    norms,
    pooling,
    reductions,
    resize,
    rounding,
    shapes,
)

__all__ = [
    "activations",
    "channels",
    "convolution",
    "elementwise",
    "entropies",
    "indexing",
    "linear",
    "norms",
    "pooling",
    "reductions",
    "resize",
    "rounding",
    "shapes",
]

# The rules write in these vocabularies.
VOCABULARIES = (_activations, _channels, _convolution, _entropies, _pooling)
