"""Give a folded Conv its norm back: an adaptive norm that is the identity on the source's own statistics.

With the channel mean m and deviation s of the Conv's output on calibration data, (x - m)/s * s + m = x; m and s become
the norm's statistics and its affine.  Where the export folded y = g*(x0 - mu)/sigma + b, s is |g| and m is b.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ttac.passes.build import Builder
from ttac.passes.norms import Candidate, NormSite, site_of

ROOM = "insert"
# Relative to the channel's variance, as BatchNorm's 1e-5 is to the unit variance that its input usually has.
EPSILON = 1e-5


def insert_norms(
    model: ir.Model, candidates: Sequence[Candidate], statistics: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> list[NormSite]:
    """Append a BatchNormalization to every candidate Conv of `model`, in place.

    Args:
        statistics: value name -> (mean, biased variance), float32 [C], over the calibration data.
    """
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    return [_insert(op, model.graph, candidate, *statistics[str(candidate.value.name)]) for candidate in candidates]


def _insert(op: Builder, graph: ir.Graph, candidate: Candidate, mean: np.ndarray, var: np.ndarray) -> NormSite:
    x = candidate.value
    uses = list(x.uses())
    epsilon = float(EPSILON * max(float(np.median(var)), 1e-12))
    scale = np.sqrt(var.astype(np.float64) + epsilon).astype(np.float32)
    after = _next_node(graph, candidate.node)
    with op.at(candidate.name, before=after):
        y = op.BatchNormalization(x, scale, mean, mean, var, epsilon=epsilon, name=f"{candidate.name}.norm")
    for user, position in uses:
        user.replace_input_with(position, y)
    node = y.producer()
    assert node is not None
    return site_of(node, candidate.name, inserted=True)


def _next_node(graph: ir.Graph, node: ir.Node) -> ir.Node | None:
    nodes = list(graph)
    position = nodes.index(node) + 1
    return nodes[position] if position < len(nodes) else None
