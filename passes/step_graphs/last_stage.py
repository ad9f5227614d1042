"""The norms of the last stage of a network, which stay untrained, by the network's graph.

A stage is a run of norms at one resolution (positions of a feature map, or tokens).  It begins where all paths through
the network last meet before the first norm of the run, so that the norms of a block that changes resolution belong to
the stage behind the block.  A network of one resolution (a vision transformer) has no stages: its last stage is the
last quarter of the norms, blocks 9 to 11 of 12.  The last norm of all always belongs to the last stage.  In an
encoder-decoder the last stage is that of the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.graph.waists import waists
from ttac.passes.norms.norm_sites import NormSite
from ttac.passes.step_graphs.context import Subject

ASSUMED_STAGES = 4
"""Number of equal stages that a network without stages is divided into; the last one holds a quarter of the norms."""


def before_last_stage(subject: Subject) -> frozenset[str]:
    """Names of the sites that train: all but those of the last stage, or all with `exclude_last_stage=false`."""
    names = frozenset(site.name for site in subject.sites)
    return names - last_stage(subject.model, subject.sites) if subject.settings["exclude_last_stage"] else names


def last_stage(model: ir.Model, sites: Sequence[NormSite]) -> frozenset[str]:
    """Names of the sites, given in graph order, in the last stage; empty if that would be all of them."""
    if not sites:
        return frozenset()
    run = _last_run(sites)
    if len(run) == len(sites):
        *blocks, last = sites
        chosen = [*blocks[len(blocks) - len(blocks) // ASSUMED_STAGES :], last]
    else:
        position = {node: index for index, node in enumerate(model.graph)}
        entry = _entry(model.graph, position[run[0].node]) if run else 0
        # The deeper stages of a decoder, which a skip connection bypasses, are smaller and also lie behind the entry.
        large = min((site.spatial for site in run if site.spatial > 1), default=1)
        inside = [s for s in sites if position[s.node] >= entry and s.spatial > large]
        chosen = [site for site in sites if site in (*run, *inside) or site is sites[-1]]
    return frozenset(site.name for site in chosen) if len(chosen) < len(sites) else frozenset()


def _last_run(sites: Sequence[NormSite]) -> list[NormSite]:
    """The sites at the end that share one resolution; pooled ones, with a single position, do not end the run."""
    mapped = [site for site in sites if site.spatial > 1]
    if not mapped:
        return list(sites)
    final = mapped[-1].spatial
    # A class token beside the patches is one position more.
    others = [i for i, site in enumerate(sites) if site.spatial > 1 and abs(site.spatial - final) > 1]
    return list(sites[others[-1] + 1 :] if others else sites)


def _entry(graph: ir.Graph, position: int) -> int:
    """The last place in front of `position` where one tensor is all that goes on from the input."""
    return max((index + 1 for index, _ in waists(graph, graph.inputs) if index < position), default=0)
