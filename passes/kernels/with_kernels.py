"""Rewrite the graphs of a step so that they use the nodes of the library."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from ttac.passes.kernels.depthwise import fuse_depthwise
from ttac.passes.kernels.gelus import fuse_gelus
from ttac.passes.kernels.kept_blocks import fuse_saves
from ttac.passes.kernels.layer_norms import fuse_layer_norms
from ttac.passes.kernels.linked_graphs import LinkedGraphs
from ttac.passes.kernels.mask_bits import pack_masks, read_elsewhere
from ttac.passes.kernels.norm_backward import fuse_backward
from ttac.passes.kernels.norm_forward import fuse_again, fuse_forward
from ttac.passes.kernels.pools import fuse_pools
from ttac.passes.kernels.reshaped_outputs import cross_before_reshapes
from ttac.passes.kernels.softmax_gradients import fuse_softmax_gradients
from ttac.passes.kernels.sparse_backward import fuse_sparse_backward
from ttac.passes.kernels.weight_gradients import fuse_kernels, fuse_weight_gradients
from ttac.passes.kernels.whole_saves import decoded_norms, fuse_whole_saves


def with_kernels(models: Mapping[str, ir.Model], outside: Collection[str]) -> Mapping[str, ir.Model]:
    """Copies of `models`, in the order in which they run, with nodes of the library where the library has one.

    Args:
        outside: names of outputs that anybody but a later one of `models` reads.
    """
    plain_bits: set[str] = set()
    while True:
        graphs = LinkedGraphs({name: model.clone() for name, model in models.items()})
        norms = fuse_forward(graphs, plain_bits)
        saved = fuse_saves(graphs)
        read = decoded_norms(norms, fuse_whole_saves(graphs, saved))
        fuse_backward(graphs, read)
        fuse_again(graphs, read)
        fuse_sparse_backward(graphs, norms, saved)
        fuse_pools(graphs)
        fuse_layer_norms(graphs)
        fuse_gelus(graphs)
        fuse_softmax_gradients(graphs)
        fuse_weight_gradients(graphs)
        fuse_kernels(graphs)
        cross_before_reshapes(graphs, outside)
        graphs.tidy(outside)
        found = read_elsewhere(graphs, [norm.bits for norm in norms if norm.bits is not None])
        if not found:
            pack_masks(graphs, outside)
            fuse_depthwise(graphs)
            graphs.tidy(outside)
            return graphs.models
        plain_bits |= found
