"""State that the forward moves: gradients read a copy from before the move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.plan.needs_gradient import needs_gradient


def copy_moved_state(model: ir.Model, backward: Sequence[ir.Node], moved: Iterable[ir.Value]) -> None:
    """Let every node that needs a gradient read a copy of the state inputs `moved`, in place.

    The copy is a value that the plan can keep; the input itself has another value after the forward.  A second call
    changes nothing.
    """
    gradient_nodes = needs_gradient(backward)
    op = Builder(model.graph, "autodiff", model.opset_imports[""])
    for state in moved:
        uses = [use for use in state.uses() if use.node in gradient_nodes]
        if not uses:
            continue
        with op.at("state", before=next(iter(model.graph))):
            copy = op.Identity(state, name=f"{state.name}.begun")
        for use in uses:
            use.node.replace_input_with(use.idx, copy)
