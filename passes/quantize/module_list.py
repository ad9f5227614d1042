"""List the layers of a quantized graph, and the precision that each runs in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.keys import LAYER
from ttac.passes.quantize.fold import MADE_OF
from ttac.passes.quantize.grids import MOVING, WEIGHTED, Grid, GridAssignment, end_of


@dataclass(frozen=True, kw_only=True)
class Module:
    """One layer: the operators that became one 8-bit kernel, and the adapted norm behind it, if any.

    Attributes:
        name: of the layer.
        node: name of its node in the graph.
        runs: "int8", or "float32" for a layer without 8-bit kernel in the engine.
        adapts: name of the norm behind it that adapts, or "".
        range: ends of the grid of its output, [low, high]; None where the output is float.
    """

    name: str
    node: str
    operators: str
    runs: str
    adapts: str = ""
    range: tuple[float, float] | None = None


def list_modules(model: ir.Model, assignment: GridAssignment, adapted: Mapping[ir.Value, str]) -> list[Module]:
    """Return the layers of the graph in order, before `round_to_grids`; `adapted` names the norm that reads a value."""
    modules = []
    for node in model.graph:
        name = node.metadata_props.get(LAYER, str(node.name))
        if node in assignment.nodes and node.op_type not in MOVING:
            output = end_of(node)
            tail = output.producer()
            behind = tail.op_type if tail is not None and tail is not node else ""
            parts = [node.op_type, node.metadata_props.get(MADE_OF, ""), behind]
            step = assignment.grids.get(output)
            ends = _ends(step) if step is not None else None
            modules.append(
                Module(
                    name=name,
                    node=str(node.name),
                    operators=" + ".join(p for p in parts if p),
                    runs="int8",
                    adapts=adapted.get(output, ""),
                    range=ends,
                )
            )
        elif node.op_type in WEIGHTED | {"ConvTranspose"}:
            modules.append(Module(name=name, node=str(node.name), operators=node.op_type, runs="float32"))
    return modules


def _ends(step: Grid) -> tuple[float, float]:
    smallest = int(np.iinfo(step.dtype).min)
    low, high = ((q - step.zero) * step.scale for q in (smallest, smallest + 255))
    return round(low, 6), round(high, 6)
