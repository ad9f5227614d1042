"""Files that are 8-bit already: their layers as float, and the grids their values were rounded to, to round them again.

An exporter writes a layer between DequantizeLinear and QuantizeLinear.  Lifted out of them it is a plain layer, which
all other rooms understand: a norm that was folded into it can be put back.  The 8-bit room then rounds every value to
the grid the file had for it; only what is new needs calibration data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx.reference import ReferenceEvaluator

from ttac.errors import UnsupportedError
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.rewire import replace
from ttac.passes.load.model_file import REFERENCE
from ttac.passes.normalise.normal_form import tidy
from ttac.passes.quantize.fold import STEPS, channel_axis, layer_before, rescale
from ttac.passes.quantize.ranges import Range

ROOM = "islands"
CLIPPED = "ttac.clipped"
"""`meta` of a QuantizeLinear: the smallest and the largest number of its grid that are used, where not all are."""

ARITHMETIC = frozenset({"Cast", "ConstantOfShape", "Reshape", "Squeeze", "Unsqueeze", "Expand", "Mul"})
"""Operators by which exporters make scales and zero points of constants."""

MOVES = frozenset({"Concat", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Slice"})
"""Operators that leave numbers as they are."""

CONSTANT_ELEMENTS = 1 << 14
"""Elements of such constants."""

GRIDS = "ttac.grids"
"""Model metadata: the range of each value that the file rounded, by its name, as JSON."""

INTEGER = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})
"""Operators that compute in integers without saying what they mean in float."""

NONNEGATIVE = frozenset({"Relu", "Clip", "Sigmoid", "MaxPool", "GlobalAveragePool", "AveragePool"})
QDQ = 'export in the form of QuantizeLinear and DequantizeLinear ("QDQ"), or the float model: `--quantize int8`'


def is_quantized(model: ir.Model) -> bool:
    """Whether the file holds 8-bit layers."""
    return any(node.op_type in INTEGER | {"QuantizeLinear", "DequantizeLinear"} for node in model.graph)


def lift(model: ir.Model) -> tuple[ir.Model, int]:
    """A float model that computes what the file means, with its grids in `GRIDS`, and how many values it rounded.

    `model` stays as it is.  Raises UnsupportedError for integers that do not come from, or end in, such a pair.
    """
    lifted = model.clone()
    tidy(lifted)
    _compute_constants(lifted)
    _join_pairs(lifted)
    found: dict[str, Range] = {}
    for node in list(lifted.graph):
        if node.op_type in INTEGER:
            raise _refused(node, f"`{node.op_type}` computes in integers")
        if node.op_type == "DequantizeLinear":
            _lift(lifted.graph, node, found)
        elif node.op_type == "Cast":
            _lift_norms(lifted.graph, node, found)
    common.RemoveUnusedNodesPass()(lifted)
    left = [node for node in lifted.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if left:
        raise _refused(left[0], f"`{left[0].op_type}` stands alone")
    _undo_divisions(lifted)
    _narrow_to_clips(lifted, found)
    _restore_tails(lifted, found)
    lifted.metadata_props[GRIDS] = json.dumps(found)
    lifted.meta[REFERENCE] = lifted.clone()
    return lifted, len(found)


def _compute_constants(model: ir.Model) -> None:
    """Compute scales and zero points that the file makes of constants, as PyTorch's exporter does; in place."""
    for node in [node for node in model.graph if node.op_type in ARITHMETIC]:
        held = [value.const_value for value in node.inputs if value is not None]
        if (
            not all(tensor is not None and tensor.size <= CONSTANT_ELEMENTS for tensor in held)
            or node.outputs[0].is_graph_output()
        ):
            continue
        arrays = {
            str(v.name): v.const_value.numpy() for v in node.inputs if v is not None and v.const_value is not None
        }
        results: Any = ReferenceEvaluator(ir.to_proto(node), opsets={"": model.opset_imports[""]}).run(None, arrays)
        name = str(node.outputs[0].name)
        constant = ir.val(name, const_value=ir.tensor(np.asarray(results[0]), name=name))
        node.outputs[0].name = f"{name}.computed"
        model.graph.register_initializer(constant)
        node.outputs[0].replace_all_uses_with(constant)
    common.RemoveUnusedNodesPass()(model)


def _join_pairs(model: ir.Model) -> None:
    """Take out what stands between a rounding and its reading, in place: Casts to the same type, and Clips.

    PyTorch's observers use 7 bits of a byte, and cut the rest off with a Clip of the numbers; the ends of the grid are
    noted down on the rounding.
    """
    for node in list(model.graph):
        maker = node.inputs[0].producer() if node.op_type in ("Cast", "Clip") and node.inputs[0] is not None else None
        if maker is None or maker.op_type != "QuantizeLinear":
            continue
        if node.op_type == "Cast":
            if np.dtype(ir.DataType(node.attributes["to"].as_int()).numpy()) != _type(maker):
                continue
        elif not _note_clip(maker, node):
            continue
        replace(model.graph, node, maker.outputs[0])


def _note_clip(rounding: ir.Node, clip: ir.Node) -> bool:
    """Note on `rounding` between which numbers `clip` leaves what it rounds; False if they are computed."""
    if len(rounding.outputs[0].uses()) != 1:
        return False
    kind = np.iinfo(_type(rounding))
    ends = [float(kind.min), float(kind.max)]
    for position, value in enumerate(clip.inputs[1:3]):
        if value is not None and value.const_value is None:
            return False
        if value is not None and value.const_value is not None:
            ends[position] = float(value.const_value.numpy().reshape(()))
    rounding.meta[CLIPPED] = (ends[0], ends[1])
    return True


def _numbers(node: ir.Node) -> Range:
    """The smallest and the largest number that a QuantizeLinear gives."""
    kind = np.iinfo(_type(node))
    clipped: Range = node.meta.get(CLIPPED, (float(kind.min), float(kind.max)))
    return clipped


def _undo_divisions(model: ir.Model) -> None:
    """Give a layer back its kernel where training for 8 bits scaled it and divides its output again, in place.

    PyTorch rounds the kernel of Conv + BatchNorm as it will be once the norm is folded, times scale/deviation.
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


def _narrow_to_clips(model: ir.Model, found: dict[str, Range]) -> None:
    """Cut the grid of what a Relu or a Clip gives to what it can be, in place.

    Exporters that round on both sides of a Relu6 use one grid for both.  Cut to [0, 6], the rounding does what the
    Clip does, and the engine has one 8-bit operator for both; the steps become smaller, never larger.
    """
    for node in [node for node in model.graph if node.op_type in ("Relu", "Clip")]:
        name = str(node.outputs[0].name)
        ends = [0.0, np.inf] if node.op_type == "Relu" else [-np.inf, np.inf]
        for position, value in enumerate(node.inputs[1:3]):
            array = value.const_value.numpy() if value is not None and value.const_value is not None else None
            ends[position] = float(array.reshape(())) if array is not None else ends[position]
        if name in found and found[name][0] < ends[1] and ends[0] < found[name][1]:
            found[name] = (max(found[name][0], ends[0]), min(found[name][1], ends[1]))


def grids_of(model: ir.Model) -> dict[str, Range]:
    """The ranges that `lift` noted down; they are taken off the model."""
    noted: Mapping[str, list[float]] = json.loads(model.metadata_props.pop(GRIDS, "{}"))
    return {name: (low, high) for name, (low, high) in noted.items()}


def _refused(node: ir.Node, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"8-bit layers in a form that cannot be lifted: {what}", where=f"node `{node.name}`", hint=QDQ
    )


def _lift(graph: ir.Graph, node: ir.Node, found: dict[str, Range]) -> None:
    """Let the readers of a DequantizeLinear read the float value that was rounded, or the constant."""
    held = node.inputs[0]
    maker = held.producer() if held is not None else None
    if held is None or any(value is not None and value.const_value is None for value in node.inputs[1:]):
        raise _refused(node, "a scale or zero point is computed")
    if held.const_value is not None:
        value = _constant(graph, node, held.const_value.numpy())
    elif maker is not None and maker.op_type == "QuantizeLinear" and maker.inputs[0] is not None:
        value = maker.inputs[0]
        if value.const_value is not None:
            value = _constant(graph, node, quantized(maker, value.const_value.numpy()))
        else:
            found.setdefault(str(value.name), _ends(maker))
    elif maker is not None and maker.op_type in MOVES:
        value = _moved(graph, node, held, found)
    else:
        raise _refused(node, "what it reads is not rounded by a QuantizeLinear")
    _replace(graph, node.outputs[0], value)


def _moved(graph: ir.Graph, node: ir.Node, held: ir.Value, found: dict[str, Range]) -> ir.Value:
    """The float value of numbers `held` that were moved between their rounding and the DequantizeLinear `node`.

    tf2onnx transposes and joins what TensorFlow Lite holds in 8 bits; the moves are done on the values instead.
    """
    move = held.producer()
    if move is None or move.inputs[0] is None or move.op_type not in (*MOVES, "QuantizeLinear"):
        raise _refused(node, "what it reads is not rounded by a QuantizeLinear")
    if move.op_type == "QuantizeLinear":
        if any((a != b).any() for a, b in zip(_operands(move, 1), _operands(node, 1), strict=True)):
            raise _refused(node, "it reads its numbers with another scale than they were rounded to")
        found.setdefault(str(move.inputs[0].name), _ends(move))
        return move.inputs[0]
    count = len(move.inputs) if move.op_type == "Concat" else 1
    values = [_moved(graph, node, value, found) for value in move.inputs[:count] if value is not None]
    name = f"{held.name}.{node.outputs[0].name}"
    inputs = [*values, *move.inputs[count:]]
    copy = ir.node(move.op_type, inputs, move.attributes, name=name, metadata_props=dict(move.metadata_props))
    copy.outputs[0].name = name
    graph.insert_before(node, copy)
    if move.op_type == "Concat":
        found[name] = _ends(node)
    return copy.outputs[0]


def _lift_norms(graph: ir.Graph, cast: ir.Node, found: dict[str, Range]) -> None:
    """Let norms that read the numbers of a grid, as ttac's own 8-bit models do, read the values themselves."""
    held = cast.inputs[0]
    maker = held.producer() if held is not None else None
    norms = [use.node for use in cast.outputs[0].uses()]
    if maker is None or maker.op_type != "QuantizeLinear" or maker.inputs[0] is None:
        return
    if any(norm.op_type != "BatchNormalization" for norm in norms):
        raise _refused(maker, "its numbers are read as they are")
    value = maker.inputs[0]
    found.setdefault(str(value.name), _ends(maker))
    scale, zero = (float(part) for part in _operands(maker, 1))
    for norm in norms:
        mean, var = (held.const_value for held in norm.inputs[3:5] if held is not None)
        if mean is None or var is None:
            raise _refused(maker, f"the statistics of `{norm.name}` are computed")
        real = {3: (mean.numpy() - zero) * scale, 4: var.numpy() * scale**2}
        for position, array in real.items():
            name = f"{norm.name}.{'mean' if position == 3 else 'var'}.lifted"
            constant = ir.val(name, const_value=ir.tensor(array.astype(np.float32), name=name))
            graph.register_initializer(constant)
            norm.replace_input_with(position, constant)
        eps = norm.attributes.get_float("epsilon", 1e-5) * scale**2
        norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", eps)
    _replace(graph, cast.outputs[0], value)


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Read `new` where `old` was; an output of the graph keeps its name."""
    if old.is_graph_output():
        name, old.name = str(old.name), f"{old.name}.lifted"
        new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _constant(graph: ir.Graph, node: ir.Node, held: np.ndarray) -> ir.Value:
    """The float constant that a DequantizeLinear makes of `held`, and the grid of an int8 kernel around 0."""
    array = dequantized(node, held)
    value = ir.val(str(node.outputs[0].name), const_value=ir.tensor(array, name=str(node.outputs[0].name)))
    scale, zero = _operands(node, array.ndim)
    if held.dtype == np.int8 and not zero.any():
        value.meta[STEPS] = (node.attributes.get_int("axis", 1), scale.reshape(-1) if scale.ndim else scale)
    node.outputs[0].name = f"{value.name}.lifted"
    graph.register_initializer(value)
    return value


def _along(node: ir.Node, operand: np.ndarray, rank: int) -> np.ndarray:
    """Scales or zero points so that they broadcast along the node's axis."""
    if operand.ndim == 0 or operand.size == 1:
        return operand.reshape(())
    axis = node.attributes.get_int("axis", 1) % rank
    return operand.reshape([-1 if i == axis else 1 for i in range(rank)])


def _operands(node: ir.Node, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point, in a shape that broadcasts."""
    held = [value.const_value for value in node.inputs[1:3] if value is not None]
    parts = [np.asarray(tensor.numpy(), np.float32) for tensor in held if tensor is not None]
    if not held or len(parts) < len(held):
        raise _refused(node, "a scale or zero point is computed")
    scale, zero = parts[0], parts[1] if len(parts) > 1 else np.zeros_like(parts[0])
    return _along(node, scale, rank), _along(node, zero, rank)


def dequantized(node: ir.Node, array: np.ndarray) -> np.ndarray:
    """What a DequantizeLinear makes of a constant."""
    scale, zero = _operands(node, array.ndim)
    return np.asarray((array.astype(np.float32) - zero) * scale, np.float32)


def quantized(node: ir.Node, array: np.ndarray) -> np.ndarray:
    """What a QuantizeLinear makes of a constant."""
    scale, zero = _operands(node, array.ndim)
    kind = np.iinfo(_type(node))
    whole = np.round(array.astype(np.float32) / scale) + zero
    return np.asarray(np.clip(whole, *_numbers(node)).astype(kind.dtype))


def _type(node: ir.Node) -> np.dtype[Any]:
    """What a QuantizeLinear rounds to."""
    zero = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] is not None else None
    return np.dtype(np.uint8) if zero is None else zero.numpy().dtype


def _ends(node: ir.Node) -> Range:
    """The ends of the grid that a QuantizeLinear rounds to."""
    scale, zero = _operands(node, 1)
    kind = _type(node)
    if scale.size != 1 or kind not in (np.uint8, np.int8):
        raise _refused(node, f"activations are rounded to {kind}, or to a grid for each channel")
    smallest, largest = _numbers(node)
    return (smallest - float(zero)) * float(scale), (largest - float(zero)) * float(scale)


def _restore_tails(model: ir.Model, found: dict[str, Range]) -> None:
    """Put a Relu where the file left cutting off below 0 to the rounding, in place; its output takes the grid."""
    for value in [value for node in model.graph for value in node.outputs]:
        low = found.get(str(value.name), (-1.0, 0.0))[0]
        maker = value.producer()
        if low != 0.0 or maker is None or maker.op_type in NONNEGATIVE:
            continue
        name = str(value.name)
        relu = ir.node("Relu", [value], name=f"{name}.relu", metadata_props={"ttac.room": ROOM})
        kept = relu.outputs[0]
        kept.name, kept.type, kept.shape = f"{name}.relu", value.type, value.shape
        for user, position in [use for use in value.uses() if use.node is not relu]:
            user.replace_input_with(position, kept)
        model.graph.insert_after(maker, relu)
        found[str(kept.name)] = found.pop(name)
