"""Turn training-mode operators into their inference form: exporters leave them in a model in `train()` mode."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.places import node_place
from ttac.passes.graph.rewire import initializer, replace

HINT = "export the model in `eval()` mode"


def inference_form(model: ir.Model, say: Callable[[str], None]) -> None:
    """Make BatchNormalization use its stored statistics and remove Dropout, in place; `say` reports the changes.

    A batch norm of *weights* (standardised convolutions) is written out in primitives, for a later pass to fold.
    Raises UnsupportedError if a node reads a tensor that exists only in training: a dropout mask, updated statistics.
    """
    opset = model.opset_imports[""]
    dynamic = _depends_on_input(model.graph)
    norms = dropouts = 0
    for node in list(model.graph):
        if node.op_type == "Dropout":
            dropouts += _drop_dropout(model.graph, node)
        elif node.op_type == "BatchNormalization":
            training = _is_training(node, opset)
            if training and not _reaches(node, dynamic):
                _write_out(model.graph, node, opset)
                continue
            norms += training
            _use_stored(node, training)
    scalar_grids(model.graph)
    if norms:
        say(f"{norms} norms were in training mode: they now use their stored statistics")
    if dropouts:
        say(f"{dropouts} dropouts were in training mode: removed")


def scalar_grids(graph: ir.Graph) -> None:
    """Make scales and zero points of shape [1] scalars, in place; PyTorch's fake quantization leaves vectors.

    Between 8-bit operators onnxruntime refuses the vectors. Where a whole tensor has one scale, both forms mean the
    same.
    """
    for node in [node for node in graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")]:
        arrays = [_contents(value) for value in node.inputs[1:3] if value is not None]
        if not arrays or any(array is None or array.shape != (1,) for array in arrays):
            continue
        for position, array in enumerate(arrays, start=1):
            assert array is not None
            name = f"{node.inputs[0].name}.{node.op_type}.{node.outputs[0].name}.{position}"  # type: ignore[union-attr]
            node.replace_input_with(position, initializer(graph, name, array.reshape(())))
        node.attributes.pop("axis", None)


def _contents(value: ir.Value | None) -> np.ndarray | None:
    """Return the contents of an initializer, also behind Identity and Constant nodes; None for a computed value."""
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is not None and node.op_type == "Constant" and "value" in node.attributes:
            return node.attributes["value"].as_tensor().numpy()
        value = node.inputs[0] if node is not None and node.op_type == "Identity" else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _depends_on_input(graph: ir.Graph) -> set[int]:
    dependent = {id(value) for value in graph.inputs}
    for node in graph:
        if any(value is not None and id(value) in dependent for value in node.inputs):
            dependent.update(id(value) for value in node.outputs)
    return dependent


def _reaches(node: ir.Node, dynamic: set[int]) -> bool:
    return node.inputs[0] is not None and id(node.inputs[0]) in dynamic


def _is_training(node: ir.Node, opset: int) -> bool:
    if opset < 14:
        return len(node.outputs) > 1
    mode = node.attributes.get("training_mode")
    return mode is not None and mode.as_int() != 0


def _refuse_readers(node: ir.Node, outputs: str) -> None:
    extra = [value for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    if extra:
        raise UnsupportedError(f"the graph reads {outputs} of a training step", where=node_place(node), hint=HINT)


def _use_stored(node: ir.Node, training: bool) -> None:
    if training:
        _refuse_readers(node, "statistics")
    node.attributes.pop("training_mode", None)
    node.resize_outputs(1)


def _drop_dropout(graph: ir.Graph, node: ir.Node) -> bool:
    """Pass the input on; return whether the node was in training mode."""
    _refuse_readers(node, "a dropout mask")
    x, mode = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    training = mode is not None and mode.const_value is not None and bool(mode.const_value.numpy().any())
    if mode is not None and mode.const_value is None and mode.producer() is not None:
        value = mode.producer().attributes.get("value")  # type: ignore[union-attr]
        training = value is not None and bool(value.as_tensor().numpy().any())
    replace(graph, node, x)
    return training


def _write_out(graph: ir.Graph, node: ir.Node, opset: int) -> None:
    """x [1, C, ...] -> (x - mean)/sqrt(var + eps)*scale + bias over all axes but 1, in operators that can be folded."""
    _refuse_readers(node, "statistics")
    x, scale, bias = node.inputs[:3]
    assert x is not None and scale is not None and bias is not None
    rank = len(x.shape) if x.shape is not None else 3
    axes = np.array([0, *range(2, rank)], np.int64)
    eps = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5

    def add(op_type: str, *inputs: ir.Value) -> ir.Value:
        new = ir.node(op_type, inputs)
        new.outputs[0].name = f"{node.outputs[0].name}.{op_type.lower()}{len(names)}"
        names.append(new.outputs[0].name)
        new.metadata_props.update(node.metadata_props)
        graph.insert_before(node, new)
        return new.outputs[0]

    def constant(name: str, array: np.ndarray) -> ir.Value:
        return initializer(graph, f"{node.outputs[0].name}.{name}", array)

    def mean(value: ir.Value) -> ir.Value:
        if opset >= 18:
            return add("ReduceMean", value, reduced)
        result = add("ReduceMean", value)
        result.producer().attributes["axes"] = ir.AttrInt64s("axes", axes.tolist())  # type: ignore[union-attr]
        return result

    names: list[str] = []
    reduced = constant("axes", axes) if opset >= 18 else x
    per_channel = constant("shape", np.array([1, -1] + [1] * (rank - 2), np.int64))
    centred = add("Sub", x, mean(x))
    deviation = add(
        "Sqrt", add("Add", mean(add("Mul", centred, centred)), constant("epsilon", np.array(eps, np.float32)))
    )
    scaled = add("Mul", add("Div", centred, deviation), add("Reshape", scale, per_channel))
    replace(graph, node, add("Add", scaled, add("Reshape", bias, per_channel)))
