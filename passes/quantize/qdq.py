"""Put a float graph on 8-bit grids: QuantizeLinear and DequantizeLinear around what the engine then runs as one module.

The graph stays in standard operators and says in float what it means; engines replace `Dequantize -> Conv -> Relu ->
Quantize` by one 8-bit kernel.  Which operators they can do that with is data of the target.
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


@dataclass(frozen=True, kw_only=True)
class Module:
    """One layer as it runs: the operators that became one 8-bit kernel, and the norm behind it that adapts, if any.

    Attributes:
        name: of the layer; node: of its node in the graph.
        runs: "int8", or "float32" for what the engine has no 8-bit kernel for.
        range: ends of the grid of its output, [low, high]; None where the output is float.
    """

    name: str
    node: str
    operators: str
    runs: str
    adapts: str = ""
    range: tuple[float, float] | None = None


def round_to_grids(
    model: ir.Model, marked: GridAssignment, target: Target, norms: Collection[ir.Node] = (), *, trains: bool = False
) -> None:
    """Round the marked values to their grids and hold the kernels of marked nodes as int8, in place.

    Args:
        norms: batch normalisations that take the 8-bit numbers as they are, without the grid's scale and zero; the
            constant statistics they hold are put in these units.  They would divide the scale out again.
        trains: gradients will pass: rounding is written as one node that has a gradient, which `lower` writes out.
    """
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    for node in [node for node in model.graph if node in marked.nodes and node.op_type in WEIGHTED]:
        first = node.inputs[0]
        assert first is not None
        with op.at(node.metadata_props.get(LAYER, ""), before=node):
            _hold(op, node, marked.grids[first], target)
    for value, step in marked.grids.items():
        _round(op, value, step, norms, trains)
    common.RemoveUnusedNodesPass()(model)


def _round(op: Builder, value: ir.Value, step: Grid, norms: Collection[ir.Node], trains: bool) -> None:
    """Let everyone read `value` as its grid has it, and `norms` by the numbers of the grid."""
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
    """What the value is rounded to, and the number of that on its grid."""
    held = op.QuantizeLinear(value, *step.operands, name=f"{name}.int8")
    held.shape = value.shape
    back = op.DequantizeLinear(held, *step.operands, name=f"{name}.rounded")
    return back, op.Cast(held, to=int(ir.DataType.FLOAT), name=f"{name}.counted")


def _differentiable(op: Builder, value: ir.Value, step: Grid, name: str) -> tuple[ir.Value, ir.Value]:
    """The same, of nodes with gradients."""
    back = op.Rounded(value, *step.operands, name=f"{name}.rounded")
    return back, op.Counted(value, *step.operands, name=f"{name}.counted")


def before_tail(value: ir.Value) -> ir.Value:
    """What goes into the activation that makes `value`, where rounding to a grid that starts at 0 does the same."""
    maker = value.producer()
    x = maker.inputs[0] if maker is not None else None
    return x if maker is not None and maker.op_type in TAILS and x is not None else value


def count_in_steps(op: Builder, norm: ir.Node, step: Grid) -> None:
    """Put mean, variance and epsilon of a batch normalisation in units of its input's grid, in place."""
    mean, var = (value.const_value for value in norm.inputs[3:5] if value is not None)
    assert mean is not None and var is not None
    norm.replace_input_with(3, op.constant((mean.numpy() / step.scale + step.zero).astype(np.float32)))
    norm.replace_input_with(4, op.constant((var.numpy() / step.scale**2).astype(np.float32)))
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", norm.attributes.get_float("epsilon", 1e-5) / step.scale**2)


def _hold(op: Builder, node: ir.Node, step: Grid, target: Target) -> None:
    """Kernel as int8 with one scale per output channel, bias as int32 on the grid of the products."""
    held = constants(node)
    assert held is not None and node.inputs[1] is not None
    kernel, bias = held
    axis = channel_axis(node)
    layer = node.metadata_props.get(LAYER, str(node.name))
    rounded, scale = int8_kernel(kernel, axis, bias, step.scale, target, _steps(node, axis, target))
    along = {"axis": axis} if scale.ndim else {}
    held_scale = op.constant(scale)
    weight = named(op, f"{layer}.kernel.int8", rounded)
    w = op.DequantizeLinear(weight, held_scale, np.zeros(scale.shape, np.int8), name=f"{layer}.kernel", **along)
    node.replace_input_with(1, w)
    if bias is None:
        return
    products = np.asarray(scale * np.float32(step.scale), np.float32)
    whole = np.clip(np.round(bias.astype(np.float64) / products.astype(np.float64)), -(2.0**31), 2.0**31 - 1)
    steps = named(op, f"{layer}.bias.int32", whole.astype(np.int32))
    # The engine multiplies constants once, while it loads; in the file they would take as much as all biases.
    unit = op.Mul(held_scale, step.operands[0], name=f"{layer}.bias.scale")
    zero, along = np.zeros(products.shape, np.int32), {"axis": 0} if scale.ndim else {}
    node.replace_input_with(2, op.DequantizeLinear(steps, unit, zero, name=f"{layer}.bias.rounded", **along))


def _steps(node: ir.Node, axis: int, target: Target) -> np.ndarray | None:
    """The scales [C] of a kernel that is 8-bit already, None where they are not known or do not fit the target."""
    kernel = node.inputs[1]
    noted = kernel.meta.get(STEPS) if kernel is not None else None
    if noted is None or not target.int8_per_channel:
        return None
    return np.asarray(noted[1]) if noted[1].ndim == 0 or noted[0] == axis else None


def named(op: Builder, name: str, array: np.ndarray) -> ir.Value:
    """A constant of that name, or of the next free one."""
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
    """A kernel as int8 and its scale: [C] with one for each output channel, or one in all.

    The scale is the largest magnitude over 127, or over 63 for engines whose 16-bit sums would overflow
    (`int8_reduce_range`); or the one in `steps`, of a kernel that is 8-bit already.  A channel of nearly nothing but
    bias gets one coarse enough for that bias to fit 32 bits.
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


def list_modules(model: ir.Model, marked: GridAssignment, adapted: Mapping[ir.Value, str]) -> list[Module]:
    """The layers of the graph in order, before `insert`; `adapted` names the norm that reads a value."""
    found = []
    for node in model.graph:
        name = node.metadata_props.get(LAYER, str(node.name))
        if node in marked.nodes and node.op_type not in MOVING:
            output = end_of(node)
            tail = output.producer()
            made_of = [node.op_type, node.metadata_props.get(MADE_OF, "")]
            parts = [*made_of, tail.op_type if tail is not None and tail is not node else ""]
            step = marked.grids.get(output)
            ends = _ends(step) if step is not None else None
            found.append(
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
            found.append(Module(name=name, node=str(node.name), operators=node.op_type, runs="float32"))
    return found


def _ends(step: Grid) -> tuple[float, float]:
    smallest = int(np.iinfo(step.dtype).min)
    low, high = ((q - step.zero) * step.scale for q in (smallest, smallest + 255))
    return round(low, 6), round(high, 6)
