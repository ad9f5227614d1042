"""Put a float graph on 8-bit grids: QuantizeLinear and DequantizeLinear around each module of the engine.

The graph stays in standard operators and states its meaning in float. Engines replace `Dequantize -> Conv -> Relu ->
Quantize` by one 8-bit kernel. The target's data lists the operators for which they can.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.rewire import node_after
from ttac.passes.quantize.fold import ROOM
from ttac.passes.quantize.grids import TAILS, WEIGHTED, Grid, GridAssignment
from ttac.passes.quantize.int8_weights import store_int8
from ttac.spec import Target


def round_to_grids(
    model: ir.Model,
    assignment: GridAssignment,
    target: Target,
    norms: Collection[ir.Node] = (),
    *,
    trains: bool = False,
) -> None:
    """Round the assigned values to their grids and store the kernels of assigned nodes as int8, in place.

    Args:
        norms: batch normalisations that read the 8-bit numbers, without the grid's scale and zero; their constant
            statistics are converted to these units. Otherwise the norms would divide the scale out again.
        trains: gradients will pass, so the rounding is one node with a gradient, which `lower` expands.
    """
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    for node in [node for node in model.graph if node in assignment.nodes and node.op_type in WEIGHTED]:
        first = node.inputs[0]
        assert first is not None
        with op.at(node.metadata_props.get(LAYER, ""), before=node):
            store_int8(op, node, assignment.grids[first], target)
    for value, step in assignment.grids.items():
        _round(op, value, step, norms, trains)
    common.RemoveUnusedNodesPass()(model)


def _round(op: Builder, value: ir.Value, step: Grid, norms: Collection[ir.Node], trains: bool) -> None:
    """Let all readers of `value` read it rounded, and `norms` read the numbers of the grid."""
    maker = value.producer()
    layer = maker.metadata_props.get(LAYER, "") if maker is not None else "input"
    users, name, output = list(value.uses()), str(value.name), value.is_graph_output()
    source = before_tail(value) if trains and step.starts_at_zero else value
    with op.at(layer, before=node_after(op.graph, maker)):
        stem = layer if maker is not None and layer else name
        back, counted = _differentiable(op, source, step, stem) if trains else _pair_of(op, source, step, stem)
    back.shape = counted.shape = value.shape
    for user, position in users:
        user.replace_input_with(position, counted if user in norms else back)
        if user in norms:
            count_in_steps(op, user, step)
    if output:
        op.graph.outputs[:] = [back if v is value else v for v in op.graph.outputs]
        value.name, back.name = f"{name}.float", name


def _pair_of(op: Builder, value: ir.Value, step: Grid, name: str) -> tuple[ir.Value, ir.Value]:
    """Return the rounded value, and its number on the grid."""
    held = op.QuantizeLinear(value, *step.operands, name=f"{name}.int8")
    held.shape = value.shape
    back = op.DequantizeLinear(held, *step.operands, name=f"{name}.rounded")
    return back, op.Cast(held, to=int(ir.DataType.FLOAT), name=f"{name}.counted")


def _differentiable(op: Builder, value: ir.Value, step: Grid, name: str) -> tuple[ir.Value, ir.Value]:
    """Return the same two values from nodes with gradients."""
    back = op.Rounded(value, *step.operands, name=f"{name}.rounded")
    return back, op.Counted(value, *step.operands, name=f"{name}.counted")


def before_tail(value: ir.Value) -> ir.Value:
    """Return the input of the activation that makes `value`, where a grid that starts at 0 replaces it."""
    maker = value.producer()
    x = maker.inputs[0] if maker is not None else None
    return x if maker is not None and maker.op_type in TAILS and x is not None else value


def count_in_steps(op: Builder, norm: ir.Node, step: Grid) -> None:
    """Convert mean, variance and epsilon of a batch normalisation to units of its input's grid, in place."""
    mean, var = (value.const_value for value in norm.inputs[3:5] if value is not None)
    assert mean is not None and var is not None
    norm.replace_input_with(3, op.constant((mean.numpy() / step.scale + step.zero).astype(np.float32)))
    norm.replace_input_with(4, op.constant((var.numpy() / step.scale**2).astype(np.float32)))
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", norm.attributes.get_float("epsilon", 1e-5) / step.scale**2)
