"""Every gradient rule against finite differences, torch and the engine, on the graphs of `gradient_cases`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

import ttac.passes.differentiate.rules
from tests.support.exact_operators import OPERATORS
from tests.support.gradient_case import Case, Floats, N, case_of
from tests.support.gradient_cases import CASES
from ttac.errors import UnsupportedError
from ttac.passes.differentiate.reverse_walk import RULES, differentiate
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import COMPOSITES, DOMAIN, Composite
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


def over(cases: Sequence[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=str)


@over(CASES)
def test_finite_differences(case: Case) -> None:
    exact = case.oracle == "reference"
    joint = joint_of(case, DOUBLE if exact else SINGLE)
    check(case, joint.whole)
    prepare = reference if exact else engine
    whole, forward = prepare(joint.whole), prepare(joint.forward)
    step, tolerance, floor = (1e-5, 1e-6, 1e-8) if exact else (1e-2, 1e-3, 1e-3)
    for seed in range(len(BATCHES)):
        feeds = drawn(case, joint, seed)
        _, *gradients = whole(feeds)
        for name, gradient in zip(joint.wrt, gradients, strict=True):
            assert gradient.shape == feeds[name].shape
            direction = np.random.default_rng(seed + 7).standard_normal(gradient.shape)
            moved = [{**feeds, name: feeds[name] + sign * step * direction} for sign in (1, -1)]
            ahead, behind = (float(forward(feed)[0]) for feed in moved)
            scale = float(np.abs(gradient * direction).sum())
            error = (gradient * direction).sum() - (ahead - behind) / (2 * step)
            assert abs(error) <= tolerance * scale + floor, name


@over([case for case in CASES if case.oracle == "reference"])
def test_engine_agrees_with_the_reference(case: Case) -> None:
    single, double = joint_of(case, SINGLE), joint_of(case, DOUBLE)
    check(case, single.whole)
    run, exact = engine(single.whole), reference(double.whole)
    for seed in range(len(BATCHES)):
        feeds = {name: array.astype(np.float32).astype(float) for name, array in drawn(case, double, seed).items()}
        for expected, found in zip(exact(feeds), run(feeds), strict=True):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


@over([case for case in CASES if len(case.trained) > 1])
def test_each_input_alone_gets_the_same_gradient(case: Case) -> None:
    together = joint_of(case, SINGLE)
    feeds = drawn(case, together, 0)
    _, *expected = engine(together.whole)(feeds)
    for position, gradient in zip(case.trained, expected, strict=True):
        alone = joint_of(case, SINGLE, only=position)
        _, found = engine(alone.whole)(feeds)
        np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-5)


@over(list({case.op: case for case in CASES if case.opset == 18 and not case.retired}.values()))
def test_rules_hold_in_opset_21(case: Case) -> None:
    check(case, joint_of(case, SINGLE, opset=21).whole)


@over([case for case in CASES if case.torch])
def test_torch_agrees(case: Case) -> None:
    pytest.importorskip("torch")
    joint = joint_of(case, SINGLE)
    feeds = drawn(case, joint, 1)
    expected = torch_gradients(case, feeds, joint.wrt)
    _, *found = engine(joint.whole)(feeds)
    for name, gradient in zip(joint.wrt, found, strict=True):
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-4)


def torch_gradients(case: Case, feeds: Feeds, wrt: Sequence[str]) -> Feeds:
    import torch

    torch.set_num_threads(1)
    tensors = {name: torch.tensor(array, requires_grad=name in wrt) for name, array in feeds.items()}
    inputs = [tensors.get(f"x{position}") for position in range(len(case.inputs))]
    (torch_forward(case, *inputs) * tensors["weights0"]).sum().backward()
    return {name: tensors[name].grad.numpy() for name in wrt}


def torch_forward(case: Case, x: Any, w: Any = None, b: Any = None, *_: Any) -> Any:
    import torch.nn.functional as F

    given, count = case.attributes, x.dim() - 2
    pads = given.get("pads", [0] * 2 * count)
    assert pads[:count] == pads[count:]
    strides = given.get("strides", [1] * count)
    dilations = given.get("dilations", [1] * count)
    if case.op == "Conv":
        return getattr(F, f"conv{count}d")(x, w, b, strides, pads[:count], dilations, given.get("group", 1))
    if case.op == "ConvTranspose":
        extra = given.get("output_padding", [0] * count)
        function = getattr(F, f"conv_transpose{count}d")
        return function(x, w, b, strides, pads[:count], extra, given.get("group", 1), dilations)
    ceil = bool(given.get("ceil_mode", 0))
    if case.op == "MaxPool":
        return getattr(F, f"max_pool{count}d")(x, given["kernel_shape"], strides, pads[:count], dilations, ceil)
    if case.op == "AveragePool":
        padded = bool(given.get("count_include_pad", 0))
        return getattr(F, f"avg_pool{count}d")(x, given["kernel_shape"], strides, pads[:count], ceil, padded)
    mode = {"nearest": "nearest", "linear": "bilinear"}[given["mode"]]
    return F.interpolate(x, scale_factor=2, mode=mode)


STRAIGHT = {"Rounded", "Counted"}
"""Rules that are no derivative but stand for one: `test_quantize_gradients.py` has them."""


def test_every_rule_has_a_case() -> None:
    assert sorted(set(RULES) - {case.op for case in CASES} - STRAIGHT) == []


def test_the_cases_use_every_composite_of_the_rules() -> None:
    modules = {module.__name__ for module in ttac.passes.differentiate.rules.VOCABULARIES}
    written = {name for name, composite in COMPOSITES.items() if composite.expand.__module__ in modules}
    used = {name for case in CASES if case.oracle == "reference" for name in joint_of(case, SINGLE).operators}
    assert sorted(written - used) == []


def graph_of(*shapes: tuple[int | str, ...]) -> tuple[Builder, list[ir.Value]]:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="graph")
    values = [ir.val(name, SINGLE, shape) for name, shape in zip("abcdefgh", shapes, strict=False)]
    graph.inputs.extend(values)
    return Builder(graph, "test"), values


def outputs_of(op: Builder, *values: ir.Value, **feeds: np.ndarray) -> list[np.ndarray]:
    op.graph.outputs.extend(values)
    model = finished(ir.Model(op.graph, ir_version=8))
    onnx.checker.check_model(model, full_check=True)
    return engine(model)(feeds)


def total(op: Builder, value: ir.Value) -> ir.Value:
    return op.ReduceSum(value, keepdims=0)


def test_uses_of_one_value_add_up() -> None:
    op, (a,) = graph_of((N, 3))
    loss = total(op, op.Add(op.Mul(a, a), op.Mul(op.Exp(a), 2.0)))
    (gradient,) = differentiate(op.graph, loss, [a])
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    (found,) = outputs_of(op, gradient, a=x)
    np.testing.assert_allclose(found, 2 * x + 2 * np.exp(x), rtol=1e-5)


def test_independent_inputs_have_no_gradient() -> None:
    op, (a, b, c) = graph_of((N, 3), (3,), (N, 3))
    op.Acosh(c)
    loss = total(op, op.Mul(a, op.Cast(op.Cast(b, to=int(ir.DataType.INT32)), to=1)))
    gradients = differentiate(op.graph, loss, [a, b, c])
    assert gradients[0] is not None and gradients[1:] == [None, None]


def test_the_gradient_of_attention_sums_over_features_not_tokens() -> None:
    """sum dp*p over 7 tokens is sum do*o over 3 features; and the 7x7 attention is never transposed."""
    op, (scores, v, weights) = graph_of((N, 7, 7), (N, 7, 3), (N, 7, 3))
    loss = total(op, op.Mul(op.MatMul(op.Softmax(scores, axis=-1), v), weights))
    gradients = differentiate(op.graph, loss, [scores, v])
    made = [node for node in op.graph if node.metadata_props["ttac.room"] == "autodiff"]
    (reduced,) = [node for node in made if node.op_type == "ReduceSum"]
    assert [7, 7] not in [list(node.inputs[0].shape)[1:] for node in made if node.op_type == "Transpose"]
    assert list(reduced.inputs[0].shape)[1:] == [7, 3]
    random = np.random.default_rng(0)
    a, b, w = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 7, 7), (2, 7, 3), (2, 7, 3)))
    p = np.exp(a) / np.exp(a).sum(-1, keepdims=True)
    dp = w @ b.transpose(0, 2, 1)
    expected = p * (dp - (dp * p).sum(-1, keepdims=True)), p.transpose(0, 2, 1) @ w
    for found, wanted in zip(outputs_of(op, *gradients, a=a, b=b, c=w), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_attention_read_twice_sums_over_tokens() -> None:
    """Where the probabilities are read elsewhere too, their gradient is not that of the product alone."""
    op, (scores, v) = graph_of((N, 4, 4), (N, 4, 3))
    p = op.Softmax(scores, axis=-1)
    loss = op.Add(total(op, op.MatMul(p, v)), total(op, op.Mul(p, p)))
    (gradient,) = differentiate(op.graph, loss, [scores])
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 4), (2, 4, 3)))
    q = np.exp(a) / np.exp(a).sum(-1, keepdims=True)
    dp = np.ones((2, 4, 3), np.float32) @ b.transpose(0, 2, 1) + 2 * q
    (found,) = outputs_of(op, gradient, a=a, b=b)
    np.testing.assert_allclose(found, q * (dp - (dp * q).sum(-1, keepdims=True)), atol=1e-5)


def test_masked_attention_has_no_gradient_where_it_is_masked() -> None:
    """Scores of minus infinity, and a row masked by large negative numbers throughout."""
    op, (scores,) = graph_of((N, 3, 3))
    mask = np.array([[0, -np.inf, 0], [-1e9, -1e9, -1e9], [0, 0, 0]], np.float32)
    weights = np.arange(9, dtype=np.float32).reshape(3, 3)
    loss = total(op, op.Mul(op.Softmax(op.Add(scores, mask), axis=-1), weights))
    (gradient,) = differentiate(op.graph, loss, [scores])
    (found,) = outputs_of(op, gradient, a=np.random.default_rng(0).standard_normal((2, 3, 3)).astype(np.float32))
    assert np.isfinite(found).all() and not found[:, 0, 1].any() and found[:, 0, 0].all()
    np.testing.assert_allclose(found.sum(-1), 0, atol=1e-5)


def test_two_permutations_in_a_row_become_one_or_none() -> None:
    op, (a, w) = graph_of((N, 2, 3, 4), (N, 3, 2, 4))
    loss = total(op, op.Mul(op.Transpose(op.Transpose(a, perm=[0, 3, 1, 2]), perm=[0, 3, 2, 1]), w))
    (gradient,) = differentiate(op.graph, loss, [a])
    back = [node for node in op.graph if node.op_type == "Transpose" and node.metadata_props["ttac.room"] == "autodiff"]
    assert gradient.producer() is back[-1] and back[-1].inputs[0].producer().op_type != "Transpose"
    x, y = (
        np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((2, 2, 3, 4), (2, 3, 2, 4))
    )
    (found,) = outputs_of(op, gradient, a=x, b=y)
    np.testing.assert_allclose(found, y.transpose(0, 2, 1, 3), rtol=1e-6)


def test_missing_rules_are_listed_together() -> None:
    op, (a,) = graph_of((N, 3))
    middle = op.Relu(op.Acosh(a, name="first"))
    loss = total(op, op.Mul(op.Asinh(middle, name="second"), op.Acosh(middle, name="third")))
    op.Atanh(a, name="elsewhere")
    with pytest.raises(UnsupportedError) as caught:
        differentiate(op.graph, loss, [a])
    text = str(caught.value)
    assert "`Acosh`, `Asinh`" in text and "elsewhere" not in text
    assert all(f"node `{name}`" in text for name in ("first", "second", "third"))


REFUSED = [
    (case_of("Resize", (N, 2, 4, 5), None, np.array([1, 1, 2, 2], np.float32), mode="cubic"), "'cubic'"),
    (
        case_of("Resize", (N, 2, 4, 5), None, np.array([1, 1, 0.5, 0.5], np.float32), mode="linear", antialias=1),
        "antialias",
    ),
    (case_of("Dropout", (N, 3), np.array(0.5), np.array(True)), "training_mode"),
    (case_of("AveragePool", (N, 1, 6), kernel_shape=[3], strides=[2], ceil_mode=1, count_include_pad=1), "ceil_mode"),
    (case_of("Einsum", (3, 3), equation="ii->i"), "'ii->i'"),
    (case_of("Slice", (N, 3), np.array([1]), np.array([2]), np.array([0])), "known at run time only"),
    (case_of("Slice", (N, 3), np.array([2]), np.array([2]), np.array([1])), "empty"),
    (case_of("ScatterND", (5, 4), np.array([[1]]), (1, 4), reduction="max"), "'max'"),
    (case_of("ConvTranspose", (N, 2, 3), (2, 2, 3), output_shape=[6], strides=[2]), "output_shape"),
    (case_of("ConvTranspose", (N, 2, 3), (2, 2, 3), auto_pad="SAME_UPPER", strides=[2]), "SAME_UPPER"),
    (case_of("ReduceL2", (N, 3), np.array([], np.int64), noop_with_empty_axes=1), "noop_with_empty_axes"),
    (case_of("BatchNormalization", (N, 3), (3,), (3,), (3,), (3,), training_mode=1, outputs=3, used=(0,)), "eval mode"),
    (case_of("Concat", (N, 3), (N, 3), axis=0), "known at run time only"),
]


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=[f"{case.op}-{reason}" for case, reason in REFUSED])
def test_refusals_name_node_and_reason(case: Case, reason: str) -> None:
    op, node = node_of(case, SINGLE, 18)
    with pytest.raises(UnsupportedError) as caught:
        differentiate(op.graph, loss_of(case, op, node, SINGLE), [node.inputs[0]])
    assert f"`{case.op}`" in str(caught.value) and "node `y`" in str(caught.value) and reason in str(caught.value)


def test_computed_axes_are_refused() -> None:
    op, (a,) = graph_of((3, 4))
    axes = op.Slice(op.Shape(a), [0], [1])
    y = op.ReduceMax(a, axes, keepdims=1, name="y")
    y.shape = ir.Shape([1, 4])
    loss = total(op, y)
    with pytest.raises(UnsupportedError, match="is not a constant"):
        differentiate(op.graph, loss, [a])


@pytest.mark.parametrize("shape", [(2, 3, 7, 8), (1, 2, 8, 7)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_max_pool_ties_go_to_the_first(shape: tuple[int, ...], stride: int) -> None:
    x = np.random.default_rng(0).integers(0, 3, shape).astype(np.float32)
    op, (a,) = graph_of((N, *shape[1:]))
    y = op.MaxPool(a, kernel_shape=[3, 3], strides=[stride] * 2, pads=[1, 1, 1, 1])
    weights = np.random.default_rng(1).standard_normal([int(size) for size in y.shape[1:]]).astype(np.float32)
    (gradient,) = differentiate(op.graph, total(op, op.Mul(y, weights)), [a])
    (found,) = outputs_of(op, gradient, a=x)
    expected = np.zeros_like(x)
    for (n, c, i, j), plane in np.ndenumerate(np.broadcast_to(weights, (shape[0], *weights.shape))):
        rows, columns = (
            range(max(0, p * stride - 1), min(size, p * stride + 2)) for p, size in ((i, shape[2]), (j, shape[3]))
        )
        first = max((x[n, c, r, k], -r, -k) for r in rows for k in columns)
        expected[n, c, -int(first[1]), -int(first[2])] += plane
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_max_pool_may_have_more_taps_than_a_byte_counts() -> None:
    op, (a,) = graph_of((N, 1, 300))
    gradients = differentiate(op.graph, total(op, op.MaxPool(a, kernel_shape=[280])), [a])
    x = np.random.default_rng(0).permutation(600).reshape(2, 1, 300).astype(np.float32)
    (found,) = outputs_of(op, *gradients, a=x)
    expected = np.zeros_like(x)
    for row, start in np.ndindex(2, 21):
        expected[row, 0, start + x[row, 0, start : start + 280].argmax()] += 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_max_pool_gradient_survives_numbers_that_are_not_finite(value: float) -> None:
    op, (a,) = graph_of((N, 1, 5, 5))
    y = op.MaxPool(a, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    (gradient,) = differentiate(op.graph, total(op, op.Mul(y, y)), [a])
    (found,) = outputs_of(op, gradient, a=np.full((2, 1, 5, 5), value, np.float32))
    assert found.shape == (2, 1, 5, 5)


def test_whole_number_upsampling_is_pooled() -> None:
    case = next(case for case in CASES if str(case) == "Resize-nearest, twice")
    operators = joint_of(case, SINGLE).operators
    assert "AveragePool" in operators and "MatMul" not in operators


def test_frozen_kernels_are_flipped_once_and_trained_ones_in_the_graph() -> None:
    op, (a, w) = graph_of((N, 2, 5, 5), (2, 2, 3, 3))
    frozen = ir.val("conv.weight", const_value=ir.tensor(np.ones((2, 2, 3, 3), np.float32), name="conv.weight"))
    op.graph.register_initializer(frozen)
    y = op.Conv(op.Conv(op.Conv(a, w), frozen, pads=[1] * 4), frozen, pads=[1] * 4)
    gradients = differentiate(op.graph, total(op, y), [a, w])
    op.graph.outputs.extend(gradients)
    model = ir.Model(op.graph, ir_version=8)
    expand_all(model)
    assert [name for name in op.graph.initializers if "flipped" in name] == ["conv.weight.flipped"]
    reversed_in_graph = [node for node in op.graph if node.op_type == "Slice" and node.inputs[0] is w]
    assert len(reversed_in_graph) == 1


def test_a_trained_initializer_is_not_taken_for_frozen() -> None:
    op, (a,) = graph_of((N, 2, 5, 5))
    w = ir.val("conv.weight", const_value=ir.tensor(np.ones((2, 2, 3, 3), np.float32), name="conv.weight"))
    op.graph.register_initializer(w)
    op.graph.outputs.extend(differentiate(op.graph, total(op, op.Conv(a, w)), [a, w]))
    expand_all(ir.Model(op.graph, ir_version=8))
    assert not [name for name in op.graph.initializers if "flipped" in name]


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A composite `Same` whose expansion returns its input, once per output."""

    def types(node: ir.Node) -> list[tuple[ir.DataType | None, ir.Shape | None]]:
        return [(node.inputs[0].dtype, node.inputs[0].shape)] * 2

    same = Composite("Same", 2, types, lambda op, node: (node.inputs[0], node.inputs[0]))
    monkeypatch.setitem(COMPOSITES, "Same", same)


@pytest.mark.usefixtures("passing")
def test_expansion_keeps_names_of_inputs_and_outputs() -> None:
    op, (a,) = graph_of((N, 3))
    first, second = op.Same(a, name="first")
    mask, inner = op.Positive(first, name="mask"), op.Same(op.Exp(second, name="exp"), name="inner")[0]
    op.graph.outputs.extend([first, mask, inner])
    expected = [value.name for value in op.graph.outputs]
    model = finished(ir.Model(op.graph, ir_version=8))
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == expected == ["first", "mask", "inner"]
    assert [value.name for value in model.graph.input] == ["a"]
    assert "exp" in {name for node in model.graph.node for name in node.output}
