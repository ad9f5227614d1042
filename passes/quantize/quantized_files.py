"""Lift files that are already 8-bit: their layers as float, and the grids of their values, for the next rounding.

An exporter writes a layer between DequantizeLinear and QuantizeLinear. Lifted, it is a plain layer, which all other
rooms understand: a norm that was folded into it can be restored. Then the 8-bit room rounds every value to the grid
that the file had for it. Only new values need calibration data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx.reference import ReferenceEvaluator

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.rewire import initializer, replace
from ttac.passes.load.input_axes import AXES, axes_of
from ttac.passes.load.model_file import REFERENCE
from ttac.passes.normalise.normal_form import tidy
from ttac.passes.quantize.fold import STEPS, channel_axis, layer_before, rescale
from ttac.passes.quantize.node_grids import CLIPPED, dequantized, ends_of, operands, quantized, refusal, rounded_type
from ttac.passes.quantize.ranges import Range

ROOM = "islands"

ARITHMETIC = frozenset({"Cast", "ConstantOfShape", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Mul"})
"""Operators by which exporters compute scales and zero points from constants."""

MOVES = frozenset({"Concat", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice"})
"""Operators that move numbers without changing them."""

CONSTANT_ELEMENTS = 1 << 14
"""Largest such constant, in elements."""

GRIDS = "ttac.grids"
"""Model metadata: the range of each value that the file rounded, by its name, as JSON."""

INTEGER = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
"""Operators that compute in integers without stating their meaning in float."""

NONNEGATIVE = frozenset({"Relu", "Clip", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs"})
"""Operators behind which a grid that starts at 0 needs no Clip."""

KEEPS_SIGN = MOVES | {"MaxPool", "GlobalMaxPool", "GlobalAveragePool", "AveragePool", "ReduceMean", "Resize", "Gather"}
"""Operators whose output is not negative where their input is not."""


def is_quantized(model: ir.Model) -> bool:
    """Return whether the file contains 8-bit layers whose grids it states.

    Layers that round each batch by its own range stay as they are: their integers run unchanged, without a gradient.
    """
    kinds = {node.op_type for node in model.graph}
    if "DynamicQuantizeLinear" in kinds and not kinds & {"QuantizeLinear", "QLinearConv", "QLinearMatMul"}:
        return False
    return bool(kinds & (INTEGER | {"QuantizeLinear", "DequantizeLinear"}))


def lift(model: ir.Model) -> tuple[ir.Model, int]:
    """Return a float model with the file's meaning, and the number of values that the file rounded.

    The grids are in its metadata `GRIDS`. `model` stays unchanged. Raises UnsupportedError for integers that do not
    come from, or end in, such a pair.
    """
    lifted = model.clone()
    tidy(lifted)
    _compute_constants(lifted)
    _join_pairs(lifted)
    grids: dict[str, Range] = {}
    for node in list(lifted.graph):
        if node.op_type in INTEGER:
            raise refusal(node, f"`{node.op_type}` computes in integers")
        if node.op_type == "DequantizeLinear":
            _lift(lifted.graph, node, grids)
        elif node.op_type == "Cast":
            _lift_norms(lifted.graph, node, grids)
    common.RemoveUnusedNodesPass()(lifted)
    left = [node for node in lifted.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if left:
        raise refusal(left[0], f"`{left[0].op_type}` stands alone")
    _undo_divisions(lifted)
    _narrow_to_clips(lifted, grids)
    _restore_tails(lifted, grids)
    lifted.metadata_props[GRIDS] = json.dumps(grids)
    lifted.meta.update({REFERENCE: lifted.clone(), AXES: axes_of(model)})
    return lifted, len(grids)


def _compute_constants(model: ir.Model) -> None:
    """Compute scales and zero points that the file derives from constants, as PyTorch's exporter does; in place."""
    for node in [node for node in model.graph if node.op_type in ARITHMETIC]:
        tensors = [value.const_value for value in node.inputs if value is not None]
        if (
            not all(tensor is not None and tensor.size <= CONSTANT_ELEMENTS for tensor in tensors)
            or node.outputs[0].is_graph_output()
        ):
            continue
        arrays = {
            str(v.name): v.const_value.numpy() for v in node.inputs if v is not None and v.const_value is not None
        }
        results: Any = ReferenceEvaluator(ir.to_proto(node), opsets={"": model.opset_imports[""]}).run(None, arrays)
        name = str(node.outputs[0].name)
        node.outputs[0].name = f"{name}.computed"
        node.outputs[0].replace_all_uses_with(initializer(model.graph, name, np.asarray(results[0])))
    common.RemoveUnusedNodesPass()(model)


def _join_pairs(model: ir.Model) -> None:
    """Remove Casts to the same type and Clips between a rounding and its reader, in place.

    PyTorch's observers use 7 bits of a byte, and cut the rest off with a Clip of the numbers. The ends of the grid
    are noted on the rounding.
    """
    for node in list(model.graph):
        maker = node.inputs[0].producer() if node.op_type in ("Cast", "Clip") and node.inputs[0] is not None else None
        if maker is None or maker.op_type != "QuantizeLinear":
            continue
        if node.op_type == "Cast":
            if np.dtype(ir.DataType(node.attributes["to"].as_int()).numpy()) != rounded_type(maker):
                continue
        elif not _note_clip(maker, node):
            continue
        replace(model.graph, node, maker.outputs[0])


def _note_clip(rounding: ir.Node, clip: ir.Node) -> bool:
    """Note on `rounding` the ends to which `clip` limits its numbers; return False if they are computed."""
    if len(rounding.outputs[0].uses()) != 1:
        return False
    kind = np.iinfo(rounded_type(rounding))
    ends = [float(kind.min), float(kind.max)]
    for position, value in enumerate(clip.inputs[1:3]):
        if value is not None and value.const_value is None:
            return False
        if value is not None and value.const_value is not None:
            ends[position] = float(value.const_value.numpy().reshape(()))
    rounding.meta[CLIPPED] = (ends[0], ends[1])
    return True


def _undo_divisions(model: ir.Model) -> None:
    """Restore a kernel that training for 8 bits scaled, where the file divides the layer's output again; in place.

    PyTorch rounds the kernel of Conv + BatchNorm in its folded form, times scale/deviation.
    """
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    for node in [node for node in model.graph if node.op_type == "Div"]:
        layer, divisor = layer_before(node), node.inputs[1]
        if layer is None or divisor is None or divisor.const_value is None:
            continue
        array = np.asarray(divisor.const_value.numpy(), np.float64)
        kernel = layer.inputs[1]
        assert kernel is not None and kernel.const_value is not None
        channels = kernel.const_value.numpy().shape[channel_axis(layer)]
        if array.size not in (1, channels) or not array.all():
            continue
        with op.at(layer.metadata_props.get(LAYER, ""), before=layer):
            rescale(op, layer, np.broadcast_to(1 / array.reshape(-1), (channels,)), np.zeros(channels))
        replace(model.graph, node, layer.outputs[0])


def _narrow_to_clips(model: ir.Model, grids: dict[str, Range]) -> None:
    """Cut the grid of the output of a Relu or a Clip to the possible values, in place.

    Exporters that round on both sides of a Relu6 use one grid for both. Cut to [0, 6], the rounding does the work of
    the Clip, and the engine has one 8-bit operator for both. The steps become smaller, never larger.
    """
    for node in [node for node in model.graph if node.op_type in ("Relu", "Clip")]:
        name = str(node.outputs[0].name)
        ends = [0.0, np.inf] if node.op_type == "Relu" else [-np.inf, np.inf]
        for position, value in enumerate(node.inputs[1:3]):
            array = value.const_value.numpy() if value is not None and value.const_value is not None else None
            ends[position] = float(array.reshape(())) if array is not None else ends[position]
        if name in grids and grids[name][0] < ends[1] and ends[0] < grids[name][1]:
            grids[name] = (max(grids[name][0], ends[0]), min(grids[name][1], ends[1]))


def grids_of(model: ir.Model) -> dict[str, Range]:
    """Return the ranges that `lift` noted down, and remove them from the model."""
    noted: Mapping[str, list[float]] = json.loads(model.metadata_props.pop(GRIDS, "{}"))
    return {name: (low, high) for name, (low, high) in noted.items()}


def _lift(graph: ir.Graph, node: ir.Node, grids: dict[str, Range]) -> None:
    """Let the readers of a DequantizeLinear read the float value before its rounding, or the constant."""
    numbers = node.inputs[0]
    maker = numbers.producer() if numbers is not None else None
    if numbers is None or any(value is not None and value.const_value is None for value in node.inputs[1:]):
        raise refusal(node, "a scale or zero point is computed")
    if numbers.const_value is not None:
        value = _constant(graph, node, numbers.const_value.numpy())
    elif maker is not None and maker.op_type == "QuantizeLinear" and maker.inputs[0] is not None:
        value = maker.inputs[0]
        if value.const_value is not None:
            value = _constant(graph, node, quantized(maker, value.const_value.numpy()))
        else:
            grids.setdefault(str(value.name), ends_of(maker))
    elif maker is not None and maker.op_type in MOVES:
        value = _moved(graph, node, numbers, grids)
    else:
        raise refusal(node, "no QuantizeLinear rounds its input")
    _replace(node.outputs[0], value)


def _moved(graph: ir.Graph, node: ir.Node, numbers: ir.Value, grids: dict[str, Range]) -> ir.Value:
    """Return the float value of numbers that were moved between their rounding and the DequantizeLinear `node`.

    tf2onnx transposes and joins the 8-bit tensors of TensorFlow Lite. This moves the float values instead.
    """
    move = numbers.producer()
    if move is None or move.inputs[0] is None or move.op_type not in (*MOVES, "QuantizeLinear"):
        raise refusal(node, "no QuantizeLinear rounds its input")
    if move.op_type == "QuantizeLinear":
        if any((a != b).any() for a, b in zip(operands(move, 1), operands(node, 1), strict=True)):
            raise refusal(node, "it reads its numbers with another scale than they were rounded to")
        grids.setdefault(str(move.inputs[0].name), ends_of(move))
        return move.inputs[0]
    count = len(move.inputs) if move.op_type == "Concat" else 1
    values = [_moved(graph, node, value, grids) for value in move.inputs[:count] if value is not None]
    name = f"{numbers.name}.{node.outputs[0].name}"
    inputs = [*values, *move.inputs[count:]]
    copy = ir.node(move.op_type, inputs, move.attributes, name=name, metadata_props=dict(move.metadata_props))
    copy.outputs[0].name = name
    graph.insert_before(node, copy)
    if move.op_type == "Concat":
        grids[name] = ends_of(node)
    return copy.outputs[0]


def _lift_norms(graph: ir.Graph, cast: ir.Node, grids: dict[str, Range]) -> None:
    """Let norms that read the numbers of a grid, as in ttac's own 8-bit models, read the values themselves."""
    numbers = cast.inputs[0]
    maker = numbers.producer() if numbers is not None else None
    norms = [use.node for use in cast.outputs[0].uses()]
    if maker is None or maker.op_type != "QuantizeLinear" or maker.inputs[0] is None:
        return
    if any(norm.op_type != "BatchNormalization" for norm in norms):
        raise refusal(maker, "a node reads its integers directly")
    value = maker.inputs[0]
    grids.setdefault(str(value.name), ends_of(maker))
    scale, zero = (float(part) for part in operands(maker, 1))
    for norm in norms:
        mean, var = (statistic.const_value for statistic in norm.inputs[3:5] if statistic is not None)
        if mean is None or var is None:
            raise refusal(maker, f"the statistics of `{norm.name}` are computed")
        real = {3: (mean.numpy() - zero) * scale, 4: var.numpy() * scale**2}
        for position, array in real.items():
            name = f"{norm.name}.{'mean' if position == 3 else 'var'}.lifted"
            norm.replace_input_with(position, initializer(graph, name, array.astype(np.float32)))
        eps = norm.attributes.get_float("epsilon", 1e-5) * scale**2
        norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", eps)
    _replace(cast.outputs[0], value)


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Let all readers of `old` read `new`; an output of the graph keeps its name."""
    if old.is_graph_output():
        name, old.name = str(old.name), f"{old.name}.lifted"
        new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _constant(graph: ir.Graph, node: ir.Node, numbers: np.ndarray) -> ir.Value:
    """Return the float constant that a DequantizeLinear computes, and note the grid of an int8 kernel around 0."""
    array, name = dequantized(node, numbers), str(node.outputs[0].name)
    node.outputs[0].name = f"{name}.lifted"
    value = initializer(graph, name, array)
    scale, zero = operands(node, array.ndim)
    if numbers.dtype == np.int8 and not zero.any():
        value.meta[STEPS] = (node.attributes.get_int("axis", 1), scale.reshape(-1) if scale.ndim else scale)
    return value


def _restore_tails(model: ir.Model, grids: dict[str, Range]) -> None:
    """Insert a Clip where the file left a ReLU or a Clip to the rounding, in place; its output takes the grid.

    onnxruntime drops the activation in front of a rounding whose grid ends where the activation does. The upper end
    matters too: without it, a ReLU6 has no bound, and a hard swish grows with the square of its input.
    """
    for value in [value for node in model.graph for value in node.outputs]:
        low, high = grids.get(str(value.name), (-1.0, 0.0))
        maker = value.producer()
        if low != 0.0 or maker is None or _is_nonnegative(value):
            continue
        name = str(value.name)
        ends = [
            initializer(model.graph, f"{name}.{end}", np.array(number, np.float32))
            for end, number in (("low", low), ("high", high))
        ]
        clip = ir.node("Clip", [value, *ends], name=f"{name}.clip", metadata_props={"ttac.room": ROOM})
        kept = clip.outputs[0]
        kept.name, kept.type, kept.shape = f"{name}.clip", value.type, value.shape
        for user, position in [use for use in value.uses() if use.node is not clip]:
            user.replace_input_with(position, kept)
        model.graph.insert_after(maker, clip)
        grids[str(kept.name)] = grids.pop(name)


def _is_nonnegative(value: ir.Value | None) -> bool:
    """Return whether the operators before `value` let no negative number through."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in KEEPS_SIGN:
        return node is not None and node.op_type in NONNEGATIVE
    count = len(node.inputs) if node.op_type == "Concat" else 1
    return all(_is_nonnegative(each) for each in node.inputs[:count])
