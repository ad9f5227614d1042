"""Parameters of the source model under the names of their sites, so that an adapted state can replace them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ttac.passes.graph.rewire import initializer
from ttac.passes.norms.norm_sites import NormSite

ROLES = ("scale", "bias", "mean", "var")


def name_parameters(model: ir.Model, sites: Sequence[NormSite]) -> None:
    """Give every site of `model` initializers of its own, in place: `<site>.scale`, `.bias`, `.mean`, `.var`."""
    names = {f"{site.name}.{role}" for site in sites for role in ROLES}
    for name in sorted(names & set(model.graph.initializers)):
        shared = model.graph.initializers.pop(name)
        shared.name = f"{name}.source"
        model.graph.register_initializer(shared)
    for site in sites:
        for position, role in enumerate(site.parameters, start=1):
            own_initializer(model.graph, site.node, position, f"{site.name}.{role}")


def own_initializer(graph: ir.Graph, node: ir.Node, position: int, name: str) -> None:
    """Let the constant input at `position` be an initializer `name` that no other node reads, in place."""
    old = node.inputs[position]
    assert old is not None and old.const_value is not None
    if len(old.uses()) == 1:
        graph.initializers.pop(str(old.name), None)
    node.replace_input_with(position, initializer(graph, name, old.const_value.numpy()))
