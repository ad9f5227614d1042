"""Cases of gradient rules as models: the loss alone, and with its gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from tests.support.exact_operators import OPERATORS
from tests.support.gradient_case import Case, Floats, N
from ttac.passes.differentiate.reverse_walk import differentiate
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import DOMAIN
from ttac.passes.graph.expand import expand_all

BATCHES = (2, 3)


DOUBLE, SINGLE = ir.DataType.DOUBLE, ir.DataType.FLOAT


Feeds = dict[str, np.ndarray]


Run = Callable[[Feeds], list[np.ndarray]]


@dataclass(frozen=True)
class Joint:
    """A case as two models: `forward` ends in the loss, `whole` also gives the gradient of each name in `wrt`."""

    forward: onnx.ModelProto
    whole: onnx.ModelProto
    wrt: tuple[str, ...]
    shapes: dict[str, tuple[int | str, ...]]
    operators: frozenset[str]


@functools.cache
def joint_of(case: Case, dtype: ir.DataType, opset: int = 0, only: int | None = None) -> Joint:
    """The case differentiated with respect to all its float inputs, or only the one at position `only`."""
    op, node = node_of(case, dtype, opset or case.opset)
    graph, loss = op.graph, loss_of(case, op, node, dtype)
    graph.outputs.append(loss)
    wrt = [node.inputs[position] for position in case.trained if only in (None, position)]
    shapes = {value.name: tuple(value.shape.dims) for value in graph.inputs}
    shapes = {
        name: tuple(size if isinstance(size, int) else size.value for size in dims) for name, dims in shapes.items()
    }
    model = ir.Model(graph, ir_version=8)
    forward = finished(model.clone())
    gradients = differentiate(graph, loss, wrt, opset=op.opset)
    assert None not in gradients
    graph.outputs.extend(op.Identity(dx, name=f"{x.name}.gradient") for x, dx in zip(wrt, gradients, strict=True))
    operators = frozenset(node.op_type for node in graph)
    return Joint(forward, finished(model), tuple(value.name for value in wrt), shapes, operators)


def node_of(case: Case, dtype: ir.DataType, opset: int) -> tuple[Builder, ir.Node]:
    """A graph that holds nothing but the case's node, which is called `y`."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": opset, DOMAIN: 1}, name="case")
    operands: list[Any] = []
    for position, given in enumerate(case.inputs):
        if isinstance(given, Floats):
            graph.inputs.append(ir.val(f"x{position}", dtype, given.shape))
            operands.append(graph.inputs[-1])
        elif isinstance(given, np.ndarray) and given.dtype == np.float64:
            operands.append(given.astype(dtype.numpy()))
        else:
            operands.append(given)
    op = Builder(graph, "test", opset)
    if case.retired:
        graph.append(ir.node(case.op, operands, case.attributes, num_outputs=1, name="y"))
    else:
        op.node(case.op, operands, case.attributes, name="y", outputs=case.outputs)
    node = graph[-1]
    for value in node.outputs:
        # Inference loses a symbolic batch, or all, in some operators; the compiler puts it back, and so does the test.
        first = node.inputs[0]
        sizes = list(first.shape if value.shape is None else value.shape)
        value.dtype = value.dtype or first.dtype
        value.shape = ir.Shape([N if size == ir.SymbolicDim(None) else size for size in sizes])
        value.name = value.name or "y"
    return op, node


def loss_of(case: Case, op: Builder, node: ir.Node, dtype: ir.DataType) -> ir.Value:
    """sum of output*weights over the outputs in use; the weights are graph inputs, random at run time."""
    used = case.used or [i for i, value in enumerate(node.outputs) if value.dtype.is_floating_point()]
    terms = []
    for position in used:
        value = node.outputs[position]
        weights = ir.val(f"weights{position}", value.dtype, value.shape)
        op.graph.inputs.append(weights)
        product = op.Mul(value, weights)
        terms.append(op.ReduceSum(product if value.dtype == dtype else op.Cast(product, to=int(dtype)), keepdims=0))
    return functools.reduce(op.Add, terms)


def finished(model: ir.Model) -> onnx.ModelProto:
    """The model in standard operators."""
    names = [value.name for value in model.graph.outputs]
    expand_all(model)
    assert [value.name for value in model.graph.outputs] == names
    for node in model.graph:
        assert node.domain == "" and onnx.defs.has(node.op_type), node.op_type
    return ir.to_proto(model)


def check(case: Case, model: onnx.ModelProto) -> None:
    if not case.retired:
        onnx.checker.check_model(model, full_check=True)


def drawn(case: Case, joint: Joint, seed: int) -> Feeds:
    """Inputs of the case in float64; another seed has another batch."""
    rng, batch = np.random.default_rng(seed), BATCHES[seed % len(BATCHES)]
    feeds = {}
    for name, symbolic in joint.shapes.items():
        shape = tuple(batch if size == N else int(size) for size in symbolic)
        given = case.inputs[int(name[1:])] if name.startswith("x") else Floats(())
        feeds[name] = draw(given.draw, shape, rng)
    return feeds


def draw(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if kind == "positive":
        return rng.uniform(0.5, 2.0, shape)
    if kind == "apart":
        count = int(np.prod(shape))
        return ((rng.permutation(count) - count / 2 + 0.4371) * (6.0 / count)).reshape(shape)
    if kind in ("low", "high"):
        return np.array({"low": -0.7713, "high": 0.9127}[kind])
    return rng.standard_normal(shape)


def reference(model: onnx.ModelProto) -> Run:
    evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
    return lambda feeds: evaluator.run(None, feeds)


def engine(model: onnx.ModelProto) -> Run:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, {name: array.astype(np.float32) for name, array in feeds.items()})
