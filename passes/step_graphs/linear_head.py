"""The linear layer that makes a model's predictions, and the features that the layer reads."""

from __future__ import annotations

import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.differentiate.heads import Head
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.step_graphs.context import Subject

LINEAR = frozenset({"Gemm", "MatMul", "Conv"})
BETWEEN = frozenset({"Add", "Flatten", "Reshape", "Squeeze"})
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


def last_linear(scores: ir.Value, purpose: str) -> ir.Node:
    """Return the linear layer behind `scores`; its first input is [N, features] or [N, features, 1, ...].

    Raises UnsupportedError if another operator makes the scores; `purpose` completes "so there are no features to ...".
    """
    node = scores.producer()
    while node is not None and node.op_type in BETWEEN:
        computed = [value.producer() for value in node.inputs if value is not None and value.const_value is None]
        node = computed[0] if computed else None
    if node is None or node.op_type not in LINEAR or node.inputs[0] is None:
        raise UnsupportedError(
            f"no linear layer makes the predictions, so there are no features to {purpose}",
            where=f"node `{node.name}` ({node.op_type})" if node else f"value `{scores.name}`",
            hint="`ttac inspect` lists the methods that fit",
        )
    return node


def flat_features(op: Builder, node: ir.Node) -> ir.Value:
    """Return the features that the linear layer reads, [N, features]."""
    x = node.inputs[0]
    assert x is not None
    return x if len(dims(x)) == 2 else op.Flatten(x, axis=1)


def unit_rows(op: Builder, rows: ir.Value | None) -> ir.Value:
    """Return each row of [N, features] with length 1."""
    return op.Div(rows, op.Max(op.ReduceL2(rows, [1], keepdims=1), SHORTEST))


def replace_output(subject: Subject, predictions: ir.Value) -> None:
    """Make `predictions` the output of the model, under the output's name and shape, in place."""
    output = subject.model.graph.outputs[0]
    predictions.name, output.name = output.name, f"{output.name}.source"
    predictions.shape = output.shape
    subject.model.graph.outputs[0] = predictions
