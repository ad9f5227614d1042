"""The estimate of the error without labels (AETTA), as an option of methods with and without gradients."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import ttac
from tests.support.consistency_case import initial, numbers
from tests.support.source_models import saved, source
from tests.support.whole_models import MODELS, compiled, samples, state_of
from ttac import methods
from ttac.errors import UnsupportedError

BATCH, DRAWS, FEATURES, CLASSES = 8, 5, 12, 4
X = samples((3, 16, 16), BATCH)
NEED_MORE = ("ecotta",)
"""Methods that need calibration data for their own sake."""
OFFERING = [
    name
    for name in methods.names()
    if name not in NEED_MORE and any(option.name == "estimate" for option in methods.find(name).options)
]
PIXELS = {"black": "-3", "white": "3"}


def classifier() -> tuple[onnx.ModelProto, np.ndarray, np.ndarray]:
    """A linear layer over the inputs, so that the inputs are the features; the weight and the bias."""
    random = np.random.default_rng(5)
    weight, bias = random.normal(size=(CLASSES, FEATURES)), random.normal(size=CLASSES)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])
    constants = [numpy_helper.from_array(a.astype(np.float32), n) for a, n in ((weight, "w"), (bias, "b"))]
    graph = helper.make_graph([helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)], "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), weight, bias


def estimates(batches: list[np.ndarray], weight: np.ndarray, bias: np.ndarray) -> list[float]:
    """The estimate after each batch by the paper's formulas in float64, with the numbers of a published generator."""
    stream, average, found = numbers(initial(0)), None, []
    for features in batches:
        drawn = np.array(list(itertools.islice(stream, DRAWS * BATCH * FEATURES))).reshape(DRAWS, BATCH, FEATURES)
        kept = (drawn > 0.4)[:, : len(features)] / 0.6
        z = (features * kept) @ weight.T.astype(np.float32).astype(np.float64) + bias.astype(np.float32)
        plain = features @ weight.T + bias
        changed = np.mean(z.argmax(-1) != plain.argmax(-1))
        p = np.exp(z - z.max(-1, keepdims=True))
        mean = (p / p.sum(-1, keepdims=True)).mean((0, 1))
        entropy = -(mean * np.log(mean + 1e-6)).sum()
        newest = min(max(changed / (entropy / math.log(CLASSES)) ** 3, 0.0), 1 - 1 / CLASSES)
        average = 0.6 * (changed if average is None else average) + 0.4 * newest
        found.append(float(average))
    return found


def test_the_estimate_follows_the_paper(tmp_path: Path) -> None:
    """Full batches and a last batch of three samples."""
    model, weight, bias = classifier()
    path = saved(model, tmp_path)
    found = ttac.load(compiled(path, tmp_path, batch=BATCH, method="source", settings={"estimate": DRAWS}), threads=1)
    random = np.random.default_rng(6)
    batches = [random.normal(size=(n, FEATURES)).astype(np.float32) for n in (BATCH, BATCH, 3)]
    actual = []
    for batch in batches:
        np.testing.assert_allclose(found.step(batch), batch @ weight.T + bias, atol=1e-5)
        actual.append(found.stats["estimated_error"])
    np.testing.assert_allclose(actual, estimates(batches, weight, bias), rtol=0, atol=1e-6)
    assert len(set(actual)) == 3 and 0 < actual[0] < 1


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * (name != "tent")) for name in OFFERING]
)
def test_the_estimate_changes_no_step(method: str, tmp_path: Path) -> None:
    """Predictions and state are those of the same method without the estimate."""
    names = {option.name for option in methods.find(method).options}
    more: dict[str, Any] = {name: value for name, value in PIXELS.items() if name in names}
    plain, found = (
        ttac.load(compiled(MODELS["resnet"], tmp_path, batch=BATCH, method=method, settings=settings), threads=1)
        for settings in (more, {**more, "estimate": 3})
    )
    for _ in range(2):
        np.testing.assert_allclose(found.step(X), plain.step(X), rtol=0, atol=1e-5)
        assert 0 <= found.stats["estimated_error"] <= 1
    after = state_of(found)
    for name, value in state_of(plain).items():
        np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_a_held_batch_is_estimated(tmp_path: Path) -> None:
    bundle = compiled(MODELS["resnet"], tmp_path, batch=BATCH, settings={"guard": "on", "estimate": 3})
    found = ttac.load(bundle, threads=1)
    values = []
    for x in [X] + 5 * [np.repeat(X[:1], BATCH, axis=0)]:
        found.step(x)
        values.append(found.stats["estimated_error"])
    assert found.stats["held_in_a_row"] > 0
    assert values[-1] != values[-2]


def test_a_model_without_a_linear_classifier_is_refused(tmp_path: Path) -> None:
    model, *_ = classifier()
    model.graph.node.append(helper.make_node("Tanh", ["y"], ["z"]))
    model.graph.output[0].name = "z"
    with pytest.raises(
        UnsupportedError, match="no linear layer makes the predictions, so there are no features to drop"
    ) as caught:
        ttac.compile(saved(model, tmp_path), method="source", settings={"estimate": 3}, output=tmp_path / "b.ttac")
    assert caught.value.hint == "leave out `--set estimate`"


def test_the_estimate_follows_scores_that_another_method_shifts(tmp_path: Path) -> None:
    """In 8 bits `neo` keeps its features and shifts the scores by one row."""
    path = saved(classifier()[0], tmp_path)
    choices: dict[str, Any] = {"batch": BATCH, "method": "neo", "quantize": "int8"}
    random = np.random.default_rng(6)
    choices["calibration"] = random.normal(size=(64, FEATURES)).astype(np.float32)
    found = ttac.load(compiled(path, tmp_path, settings={"estimate": DRAWS}, **choices), threads=1)
    plain = ttac.load(compiled(path, tmp_path, **choices), threads=1)
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=(BATCH, FEATURES)).astype(np.float32)
        np.testing.assert_array_equal(found.step(x), plain.step(x))
        assert 0 < found.stats["estimated_error"] < 1


def test_two_added_heads_have_no_features(tmp_path: Path) -> None:
    text = """
    net (float[N,6] x) => (float[N,3] y) {
      a = MatMul (x, v)
      h = Relu (a)
      p = MatMul (h, w)
      q = MatMul (x, u)
      y = Add (p, q)
    }"""
    path = saved(source(text, {"v": (6, 5), "w": (5, 3), "u": (6, 3)}), tmp_path)
    with pytest.raises(UnsupportedError, match="several layers make the predictions together"):
        ttac.compile(path, method="neo", output=tmp_path / "b.ttac")
    with pytest.raises(UnsupportedError, match="several layers make the predictions together"):
        ttac.compile(path, method="source", settings={"estimate": 5}, output=tmp_path / "b.ttac")
