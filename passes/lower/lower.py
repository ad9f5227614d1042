"""Lower graphs for a target: standard operators, in the opset and IR version that the target's engine executes."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.errors import UnsupportedError
from ttac.passes.graph.expand import expand_all
from ttac.passes.graph.layer_names import unique
from ttac.spec import Target

ROOM = "lower"


def lower(model: ir.Model, target: Target) -> ir.Model:
    """Expand ttac operators, merge repeated computations, and set the opset and IR version of `target`; in place.

    Raises UnsupportedError if the model's opset is above the target's.
    """
    expand_all(model, ROOM)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    name_nodes(model)
    opset = model.opset_imports[""]
    if opset > target.opset:
        raise UnsupportedError(
            f"the model uses opset {opset}, `{target.name}` executes up to {target.opset}",
            hint=f"export with `opset_version={target.opset}`",
        )
    domains = {node.domain for node in model.graph if node.domain}
    model.opset_imports.clear()
    model.opset_imports.update({"": opset, **dict.fromkeys(sorted(domains), 1)})
    model.ir_version = min(target.ir_version, ir_version_for(opset))
    return model


def ir_version_for(opset: int) -> int:
    """The lowest IR version for `opset`, at least 8; the onnx package would write its own, newer version."""
    return max(8, onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]))


def name_nodes(model: ir.Model) -> None:
    """Rename nodes without a name or with a repeated one after their output, in place: engines refuse equal names."""
    taken: set[str] = set()
    for node in model.graph:
        if not node.name or node.name in taken:
            node.name = unique(str(node.outputs[0].name), taken)
        taken.add(node.name)
