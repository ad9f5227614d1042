"""Give a folded layer its norm back: an adaptive norm that is the identity on the source's own statistics.

With the channel mean m and deviation s of the layer's output on calibration data, (x - m)/s * s + m = x. So m and s
become the norm's statistics and its affine. Where the export folded y = g*(x0 - mu)/sigma + b, s is |g| and m is b.

Folding also scaled the kernel, by g/sigma. Here every filter gets length 1 again, about the length that weight decay
leaves behind a norm. Only then does epsilon weigh as much against the variance as it did in training.

Where the export left a scale g/sigma and a shift behind a layer, the layer is unchanged; only statistics are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.layer_names import FOLDABLE, FOLDED_EPSILON
from ttac.passes.graph.rewire import node_after
from ttac.passes.normalise.affine_nodes import KIND
from ttac.passes.norms.folded_norms import Candidate
from ttac.passes.norms.norm_sites import NormSite, site_of

ROOM = "insert"
EPSILON = 1e-5
"""Default epsilon of PyTorch's norms; a folded file does not state the epsilon."""
DEAD = float(np.finfo(np.float32).eps)
"""Length of a filter, relative to the longest of its layer, up to which the filter adds nothing to its bias."""


def insert_norms(
    model: ir.Model, candidates: Sequence[Candidate], statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> list[NormSite]:
    """Append a BatchNormalization to every candidate layer of `model`, and complete scales and shifts to a norm.

    In place.

    Args:
        statistics: value name -> (mean, biased variance), float32 [C], over the calibration data.
    """
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    sites = []
    for candidate in candidates:
        restore = _insert if candidate.node.op_type in FOLDABLE else _complete
        sites.append(restore(op, model.graph, candidate, *statistics[str(candidate.value.name)]))
    return sites


def _complete(op: Builder, graph: ir.Graph, candidate: Candidate, mean: np.ndarray, var: np.ndarray) -> NormSite:
    """x*scale + shift -> (x - mean)/sqrt(var + eps)*(scale*sqrt(var + eps)) + (shift + scale*mean)."""
    node, eps = candidate.node, epsilon_of(candidate)
    scale, shift = (np.asarray(v.const_value.numpy(), np.float64) for v in node.inputs[1:3] if v and v.const_value)
    parameters = (scale * np.sqrt(var + eps), shift + scale * mean, mean, var)
    for position, array in enumerate(parameters, start=1):
        node.replace_input_with(position, op.constant(array.astype(np.float32)))
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", eps)
    node.metadata_props.pop(KIND)
    return site_of(node, candidate.name, inserted=True)


def _insert(op: Builder, graph: ir.Graph, candidate: Candidate, mean: np.ndarray, var: np.ndarray) -> NormSite:
    x = candidate.value
    uses = list(x.uses())
    length, eps = unit_filters(op, candidate.node), epsilon_of(candidate)
    scale = np.sqrt(var + eps * length**2)
    parameters = (array.astype(np.float32) for array in (scale, mean, mean / length, var / length**2))
    after = node_after(graph, candidate.node)
    with op.at(candidate.name, before=after):
        y = op.BatchNormalization(x, *parameters, epsilon=eps, name=f"{candidate.name}.norm")
    for user, position in uses:
        user.replace_input_with(position, y)
    node = y.producer()
    assert node is not None
    return site_of(node, candidate.name, inserted=True)


def epsilon_of(candidate: Candidate) -> float:
    """Return the default epsilon of the framework that the file comes from."""
    return float(candidate.node.metadata_props.get(FOLDED_EPSILON, EPSILON))


def unit_filters(op: Builder, node: ir.Node) -> np.ndarray:
    """Divide kernel and bias of a layer by the length of each filter, in place.

    A filter of zeros, or of weights that training drove near zero, stays unchanged: divided by its length, the bias
    would leave the range of float32.

    Returns the lengths, float64 [C], with 1 for unchanged filters.
    """
    kernel, *bias = (np.array(v.const_value.numpy(), np.float64) for v in node.inputs[1:3] if v and v.const_value)
    groups = node.attributes.get_int("group", 1) if node.op_type == "ConvTranspose" else 1
    rows = node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
    by_filter = kernel.reshape(groups, kernel.shape[0] // groups, *kernel.shape[1:])
    by_filter = np.moveaxis(by_filter, 1 if rows else 2, 1)
    length: np.ndarray = np.sqrt((by_filter**2).sum(axis=tuple(range(2, by_filter.ndim)))).reshape(-1)
    length[length <= DEAD * length.max(initial=0.0)] = 1.0
    by_filter /= length.reshape(groups, -1, *[1] * (by_filter.ndim - 2))
    for position, array in enumerate((kernel, *(each / length for each in bias)), start=1):
        node.replace_input_with(position, op.constant(array.astype(np.float32)))
    return length
