"""The norms that ZOA trains (Deng et al., arXiv:2508.02180): those in the middle of a network."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.graph.shapes import dims
from ttac.passes.norms.norm_sites import NormSite
from ttac.passes.step_graphs.context import Subject
from ttac.passes.step_graphs.last_stage import last_stage

SUMS = {True: 2, False: 1}
"""Sums with a shortcut in a block, by whether all norms are layer norms: a transformer's block has two."""


def middle_norms(subject: Subject) -> frozenset[str]:
    """Names of the sites that train: without `exclude_ends` all.

    Else none of the first block, none of the last stage, and none whose output is added to a shortcut.  If that leaves
    no site, all train but those of the last stage.
    """
    sites = subject.sites
    names = frozenset(site.name for site in sites)
    if not sites or not subject.settings["exclude_ends"]:
        return names
    early = names - last_stage(subject.model, sites)
    middle = early - _first_block(subject.model, sites) - _before_sums(sites)
    return middle or early


def _first_block(model: ir.Model, sites: Sequence[NormSite]) -> frozenset[str]:
    """The sites in front of the sum that ends the first block; the first site without such a sum."""
    position = {node: index for index, node in enumerate(model.graph)}
    last = SUMS[{site.kind for site in sites} <= {"layer", "rms"}]
    sums = [index for node, index in position.items() if _is_shortcut(node) and index > position[sites[0].node]]
    if len(sums) < last:
        return frozenset({sites[0].name})
    return frozenset(site.name for site in sites if position[site.node] < sums[last - 1])


def _before_sums(sites: Sequence[NormSite]) -> frozenset[str]:
    return frozenset(site.name for site in sites if any(_is_shortcut(use.node) for use in site.y.uses()))


def _is_shortcut(node: ir.Node) -> bool:
    """Whether the node adds two computed tensors of one shape."""
    if node.op_type != "Add" or any(value is None or value.producer() is None for value in node.inputs):
        return False
    first, second = (dims(value) for value in node.inputs)
    return first == second and len(first) > 2
