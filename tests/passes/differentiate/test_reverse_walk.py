"""The reverse walk: sums over uses, refusals, and gradients that no single rule shows."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.case_models import SINGLE, engine, finished, joint_of, loss_of, node_of
from tests.support.gradient_case import Case, N, case_of
from tests.support.gradient_cases import CASES
from ttac.errors import UnsupportedError
from ttac.passes.differentiate.reverse_walk import differentiate
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import COMPOSITES, DOMAIN, Composite
from ttac.passes.graph.expand import expand_all


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


def test_frozen_kernels_are_flipped_at_compile_time() -> None:
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
