"""The cache that papers count: the inputs of norms, convolutions and products of a batch, four bytes an element.

Hong et al. (ICLR 2023) and Ma et al. (arXiv:2503.20354) compare methods by it.  It counts one saved tensor a
layer and nothing else: no masks, no indices, no tensors of the step itself.  Another report measures a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.layer_names import CONVOLUTIONS
from ttac.passes.graph.shapes import sample_size
from ttac.passes.norms.norm_sites import NormSite

BYTES = 4
PRODUCTS = frozenset({"Gemm", "MatMul"})


@dataclass(frozen=True)
class Cached:
    """The input of one layer: bytes of a sample, and whether the layer is a norm."""

    layer: str
    bytes: int
    norm: bool


@dataclass(frozen=True)
class PublishedCache:
    """The cached inputs of a model's layers."""

    layers: tuple[Cached, ...]

    def largest(self, batch: int) -> int:
        """Bytes of the largest single input: the figure in papers for methods without a backward."""
        return batch * max((layer.bytes for layer in self.layers), default=0)

    def norms(self, batch: int) -> int:
        """Bytes of the inputs of all norms."""
        return batch * sum(layer.bytes for layer in self.layers if layer.norm)

    def all(self, batch: int) -> int:
        """Bytes of the inputs of all layers, the cache of full tuning."""
        return batch * sum(layer.bytes for layer in self.layers)

    def kept(self, batch: int, keep_ratios: Mapping[str, float]) -> int:
        """Bytes with the keep ratio of each layer; a layer without a ratio keeps nothing."""
        return int(batch * sum(keep_ratios.get(layer.layer, 0.0) * layer.bytes for layer in self.layers))

    def as_dict(self, batch: int) -> dict[str, int]:
        """The three sums for `ttac inspect`."""
        sums = {"largest_input": self.largest(batch), "norm_inputs": self.norms(batch), "all_inputs": self.all(batch)}
        return {**{f"{name}_bytes": size for name, size in sums.items()}, "batch": batch}


def published_cache(graph: ir.Graph, sites: Sequence[NormSite]) -> PublishedCache:
    """Return the cache of a normalised graph with the norms `sites`.  Raises UnsupportedError for an unknown shape."""
    norms = [Cached(site.name, _bytes(site.x), True) for site in sites]
    others = [Cached(str(node.name), _bytes(value), False) for node in graph if (value := _cached(node)) is not None]
    return PublishedCache((*norms, *others))


def _cached(node: ir.Node) -> ir.Value | None:
    """Return the input that the gradient of the node's own weight reads; None for a node without a weight."""
    if node.op_type in CONVOLUTIONS:
        return node.inputs[0]
    if node.op_type not in PRODUCTS:
        return None
    first, second = node.inputs[:2]
    # A product of two activations has no weight.
    computed = [value for value in (first, second) if value is not None and not _is_weight(value)]
    return computed[0] if len(computed) == 1 else None


def _is_weight(value: ir.Value) -> bool:
    return value.const_value is not None


def _bytes(value: ir.Value) -> int:
    if value.shape is None:
        raise UnsupportedError(f"the shape of `{value.name}` is unknown")
    return BYTES * sample_size(value.shape)
