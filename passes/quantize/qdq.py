"""Put a float graph on 8-bit grids: QuantizeLinear and DequantizeLinear around each module of the engine.

The graph stays in standard operators and states its meaning in float. Engines replace `Dequantize -> Conv -> Relu ->
Quantize` by one 8-bit kernel. The target's data lists the operators for which they can.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.rewire import node_after
from ttac.passes.quantize.fold import MADE_OF, ROOM, STEPS, channel_axis, constants
from ttac.passes.quantize.grids import MOVING, TAILS, WEIGHTED, Grid, GridAssignment, end_of
from ttac.spec import Target

LARGEST_BIAS = 2.0**30
"""Largest magnitude of a bias on its int32 grid."""


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
            _store_int8(op, node, assignment.grids[first], target)
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


def _store_int8(op: Builder, node: ir.Node, step: Grid, target: Target) -> None:
    """Store the kernel as int8 with one scale per output channel, the bias as int32 on the grid of the products."""
    parameters = constants(node)
    assert parameters is not None and node.inputs[1] is not None
    kernel, bias = parameters
    axis = channel_axis(node)
    layer = node.metadata_props.get(LAYER, str(node.name))
    rounded, scale = int8_kernel(kernel, axis, bias, step.scale, target, _steps(node, axis, target))
    along = {"axis": axis} if scale.ndim else {}
    scale_value = op.constant(scale)
    weight = named(op, f"{layer}.kernel.int8", rounded)
    w = op.DequantizeLinear(weight, scale_value, np.zeros(scale.shape, np.int8), name=f"{layer}.kernel", **along)
    node.replace_input_with(1, w)
    if bias is None:
        return
    products = np.asarray(scale * np.float32(step.scale), np.float32)
    whole = np.clip(np.round(bias.astype(np.float64) / products.astype(np.float64)), -(2.0**31), 2.0**31 - 1)
    steps = named(op, f"{layer}.bias.int32", whole.astype(np.int32))
    # The engine multiplies constants once, while it loads; in the file they would take as much as all biases.
    unit = op.Mul(scale_value, step.operands[0], name=f"{layer}.bias.scale")
    zero, along = np.zeros(products.shape, np.int32), {"axis": 0} if scale.ndim else {}
    node.replace_input_with(2, op.DequantizeLinear(steps, unit, zero, name=f"{layer}.bias.rounded", **along))


def _steps(node: ir.Node, axis: int, target: Target) -> np.ndarray | None:
    """Return the scales [C] of a kernel that is already 8-bit; None if they are unknown or do not fit the target."""
    kernel = node.inputs[1]
    noted = kernel.meta.get(STEPS) if kernel is not None else None
    if noted is None or not target.int8_per_channel:
        return None
    return np.asarray(noted[1]) if noted[1].ndim == 0 or noted[0] == axis else None


def named(op: Builder, name: str, array: np.ndarray) -> ir.Value:
    """Return a new constant of this name, or of the next free one."""
    candidate, count = name, 1
    while candidate in op.graph.initializers:
        count += 1
        candidate = f"{name}.{count}"
    value = ir.val(candidate, const_value=ir.tensor(np.ascontiguousarray(array), name=candidate))
    op.graph.register_initializer(value)
    return value


def int8_kernel(
    kernel: np.ndarray,
    axis: int,
    bias: np.ndarray | None,
    step: float,
    target: Target,
    steps: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a kernel as int8 and its scale: [C] with one for each output channel, or one in all.

    The scale is the largest magnitude over 127, or over 63 for engines whose 16-bit sums would overflow
    (`int8_reduce_range`). A kernel that is already 8-bit takes the scale in `steps`. A channel of almost nothing but
    bias gets a scale coarse enough for its bias to fit 32 bits.
    """
    most = 63 if target.int8_reduce_range and steps is None else 127
    others = tuple(i for i in range(kernel.ndim) if i != axis)
    largest = np.abs(kernel).max(axis=others).astype(np.float64)
    least = np.abs(bias.astype(np.float64)) / (step * LARGEST_BIAS) if bias is not None else np.zeros_like(largest)
    scale = np.maximum(largest / most if steps is None else steps, least)
    if not target.int8_per_channel:
        scale = scale.max()
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(kernel.ndim)] if scale.ndim else []
    rounded = np.round(kernel.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    return np.clip(rounded, -most if steps is None else -128, most).astype(np.int8), scale


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
