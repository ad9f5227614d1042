"""The linear layer that makes a model's predictions, and the features that the layer reads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.differentiate.heads import Head
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.places import node_place
from ttac.passes.graph.shapes import BATCH, dims
from ttac.passes.step_graphs.context import Subject

LINEAR = frozenset({"Gemm", "MatMul", "Conv"})
BETWEEN = frozenset({"Add", "Flatten", "Reshape", "Squeeze", "Sub"})
"""Operators behind the linear layer: a bias, a shift of the scores, and changes of the shape."""
ROUNDINGS = frozenset({"DequantizeLinear", "QuantizeLinear", "RoundToGrid"})
"""Operators that round the features for a classifier in 8 bits."""
SHORTEST = 1e-12
"""Least length that a vector is divided by, as in torch.nn.functional.normalize."""


def class_head(subject: Subject, purpose: str) -> Head:
    """Return the reading of the output, which predicts one class of each sample.

    Raises UnsupportedError for another output; `purpose` begins the message, as in "`NAME` assigns classes".
    """
    head, output = subject.head, subject.model.graph.outputs[0]
    if head is None or head.kind != "classes":
        raise UnsupportedError(
            f"{purpose}, and the output is no prediction of one class a sample",
            where=f"output `{output.name}` {output.shape}",
            hint="choose an output that is, `--logits NAME`; `ttac inspect` lists the methods that fit",
        )
    return head


def last_linear(scores: ir.Value, purpose: str, hint: str = "`ttac inspect` lists the methods that fit") -> ir.Node:
    """Return the linear layer behind `scores`; its first input is [N, features] or [N, features, 1, ...].

    Raises UnsupportedError if another operator makes the scores; `purpose` completes "so there are no features to ...".
    """
    nodes = _classifier(scores)
    node = nodes[-1] if nodes else None
    if node is not None and len(_parts(node)) > 1:
        raise UnsupportedError(
            f"several layers make the predictions together, so there are no features to {purpose}",
            where=node_place(node),
            hint=hint,
        )
    if node is None or node.op_type not in LINEAR or node.inputs[0] is None:
        raise UnsupportedError(
            f"no linear layer makes the predictions, so there are no features to {purpose}",
            where=node_place(node) if node else f"value `{scores.name}`",
            hint=hint,
        )
    return node


def _classifier(scores: ir.Value) -> list[ir.Node]:
    """Return the nodes from `scores` back to the first operator that is no bias and no change of shape."""
    nodes, node = [], scores.producer()
    while node is not None:
        nodes.append(node)
        parts = _parts(node)
        node = parts[0].producer() if parts == [node.inputs[0]] or (node.op_type == "Add" and len(parts) == 1) else None
    return nodes


def _parts(node: ir.Node) -> list[ir.Value]:
    """Return the operands of a node in `BETWEEN` that have a row for each sample; none of another operator."""
    operands = [value for value in node.inputs if value is not None and value.producer() is not None]
    sizes = {value: list(value.shape or [BATCH]) for value in operands}
    is_between = node.op_type in BETWEEN
    return [value for value in operands if is_between and any(not isinstance(size, int) for size in sizes[value])]


def roundings(classifier: ir.Node) -> list[ir.Node]:
    """Return the nodes that round the classifier's input, the last first."""
    nodes: list[ir.Node] = []
    value = classifier.inputs[0]
    while value is not None and (node := value.producer()) is not None and node.op_type in ROUNDINGS:
        nodes.append(node)
        value = node.inputs[0]
    return nodes


def flat_features(op: Builder, node: ir.Node) -> ir.Value:
    """Return the features that the linear layer reads, [N, features]."""
    x = node.inputs[0]
    assert x is not None
    return x if len(dims(x)) == 2 else op.Flatten(x, axis=1)


def classified(op: Builder, layer: ir.Node, scores: ir.Value, features: ir.Value) -> ir.Value:
    """Return the scores that the classifier from `layer` to `scores` gives other `features` [rows, features]."""
    before = layer.inputs[0]
    assert before is not None
    shape, rows = dims(before), dims(features)[0]
    made = features if len(shape) == 2 else op.Reshape(features, [-1, *shape[1:]])
    made.shape = ir.Shape([rows, *shape[1:]])
    for node in reversed(_classifier(scores)):
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        made = op.node(node.op_type, [made if value is before else value for value in node.inputs], attributes)
        before, made.shape = node.outputs[0], ir.Shape([rows, *dims(node.outputs[0])[1:]])
    return made


def subtract_features(op: Builder, subject: Subject, layer: ir.Node, scores: ir.Value, shift: ir.Value) -> None:
    """Let the classifier from `layer` to `scores` score its features less `shift` [features], in place.

    A classifier in 8 bits keeps its features, whose grid fits them, and its scores move instead.
    """
    x = layer.inputs[0]
    assert x is not None
    if not roundings(layer):
        with op.at(op.layer, before=layer):
            layer.replace_input_with(0, op.Sub(x, op.Reshape(shift, [1, -1, *[1] * (len(dims(x)) - 2)])))
        return
    readers = list(scores.uses())
    row = op.Unsqueeze(shift, [0])
    change = op.Sub(classified(op, layer, scores, row), classified(op, layer, scores, op.Mul(row, 0.0)))
    change.shape = ir.Shape([1, *dims(scores)[1:]])
    moved = op.Sub(scores, change)
    moved.shape = scores.shape
    for use in readers:
        use.node.replace_input_with(use.idx, moved)
    if scores.is_graph_output():
        replace_output(subject, moved)


def weight_rows(layer: ir.Node) -> np.ndarray:
    """Return the weight of the layer, [classes, features] float32; raises UnsupportedError if it is computed."""
    value = layer.inputs[1]
    if value is None or value.const_value is None:
        raise UnsupportedError(
            "the weight of the classifier is no constant float32 tensor, so it gives no first prototypes",
            where=node_place(layer),
            hint="compile the float32 file without `--quantize`; `ttac inspect` lists the methods that fit",
        )
    weight = value.const_value.numpy().astype(np.float32)
    upright = layer.op_type == "Conv" or (layer.op_type == "Gemm" and layer.attributes.get_int("transB", 0) != 0)
    return np.ascontiguousarray(weight.reshape(len(weight), -1) if upright else weight.T)


def unit_rows(op: Builder, rows: ir.Value | None) -> ir.Value:
    """Return each row of [N, features] with length 1."""
    return op.Div(rows, op.Max(op.ReduceL2(rows, [1], keepdims=1), SHORTEST))


def replace_output(subject: Subject, predictions: ir.Value) -> None:
    """Make `predictions` the output of the model, under the output's name and shape, in place."""
    output = subject.model.graph.outputs[0]
    predictions.name, output.name = output.name, f"{output.name}.source"
    predictions.shape = output.shape
    subject.model.graph.outputs[0] = predictions
