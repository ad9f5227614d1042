"""LAME: against the published equations in numpy, float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import ttac
from tests.support.source_models import saved, source
from tests.support.tiny_bundles import read
from tests.support.whole_models import MODELS, compiled, refused, samples
from ttac.errors import UnsupportedError

BATCH = 12
IMAGE = (3, 16, 16)


def adapter(folder: Path, path: Path = MODELS["resnet"], **settings: Any) -> ttac.Adapter:
    return ttac.load(compiled(path, folder, method="lame", batch=BATCH, settings=settings), threads=1)


def logits_and_features(path: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    model = onnx.load(path)
    last = [node for node in model.graph.node if node.op_type == "Gemm"][-1]
    model.graph.output.append(onnx.ValueInfoProto(name=last.input[0]))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, features = session.run([last.output[0], last.input[0]], {model.graph.input[0].name: x})
    return np.asarray(logits, np.float64), np.asarray(features, np.float64)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def affinity(kind: str, features: np.ndarray, count: int, *, symmetric: bool) -> np.ndarray:
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    if kind == "linear":
        return np.asarray(features @ features.T)
    apart = np.linalg.norm(features[:, None] - features[None], axis=2)
    order = np.argsort(apart, axis=1, kind="stable")
    if kind == "rbf":
        width = np.take_along_axis(apart, order, 1)[:, min(count, len(features)) - 1].mean()
        return np.asarray(np.exp(-(apart**2) / max(2 * width**2, 1e-6)))
    found = np.zeros_like(apart)
    np.put_along_axis(found, order[:, 1 : count + 1], 1.0, axis=1)
    return (found + found.T) / 2 if symmetric else found


def assignments(
    x: np.ndarray, kind: str = "rbf", count: int = 5, weight: float = 1.0, symmetric: bool = False, steps: int = 100
) -> np.ndarray:
    logits, features = logits_and_features(MODELS["resnet"], x)
    weights = weight * affinity(kind, features, count, symmetric=symmetric)
    unary = np.log(softmax(logits) + 1e-10)
    found = softmax(unary)
    for _ in range(steps):
        found = softmax(unary + weights @ found)
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"affinity": "knn"},
        {"affinity": "knn", "neighbours": 2, "symmetric": True},
        {"affinity": "linear", "weight": 0.3},
        {"neighbours": 3, "weight": 0.5},
        {"neighbours": 99},
    ],
)
def test_assignments_follow_the_paper(settings: dict[str, Any], tmp_path: Path) -> None:
    """Its code stops when the energy does; so many iterations as are the default have got there."""
    names = {"affinity": "kind", "neighbours": "count"}
    found, given = adapter(tmp_path, **settings), {names.get(name, name): value for name, value in settings.items()}
    for n in range(1, BATCH + 1):
        x = samples(IMAGE, n, seed=n)
        np.testing.assert_allclose(np.exp(found.step(x)), assignments(x, **given), rtol=0, atol=1e-5)


def test_alike_samples_change_each_other(tmp_path: Path) -> None:
    x = samples(IMAGE, BATCH)
    plain = softmax(logits_and_features(MODELS["resnet"], x)[0])
    assert np.abs(np.exp(adapter(tmp_path).step(x)) - plain).max() > 0.05


def test_no_weight_or_no_company_changes_no_label(tmp_path: Path) -> None:
    x = samples(IMAGE, BATCH)
    plain = softmax(logits_and_features(MODELS["resnet"], x)[0])
    np.testing.assert_allclose(np.exp(adapter(tmp_path, weight=0.0).step(x)), plain, rtol=0, atol=1e-5)
    alone = adapter(tmp_path)
    assert [int(alone.step(x[i : i + 1]).argmax()) for i in range(BATCH)] == plain.argmax(axis=1).tolist()


def test_equal_samples_stay_finite_and_equal(tmp_path: Path) -> None:
    x = np.repeat(samples(IMAGE, 1), BATCH, axis=0)
    for settings in ({}, {"affinity": "knn"}):
        found = adapter(tmp_path, **settings).step(x)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, np.repeat(found[:1], BATCH, axis=0), rtol=0, atol=1e-5)


def test_nothing_outlives_a_step(tmp_path: Path) -> None:
    found, x = adapter(tmp_path), samples(IMAGE, BATCH)
    expected = found.step(x)
    found.step(samples(IMAGE, 3, seed=1))
    assert np.array_equal(found.step(x), expected)
    assert np.array_equal(found.predict(x), expected)
    assert read(found.path)["state"]["tensors"] == []


@pytest.mark.parametrize(("ending", "log"), [("Softmax", False), ("LogSoftmax", True)])
def test_the_output_keeps_its_form(ending: str, log: bool, tmp_path: Path) -> None:
    model = onnx.load(MODELS["resnet"])
    output = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node(ending, [output], ["given"], axis=1))
    model.graph.output[0].name = "given"
    path = saved(model, tmp_path)
    x = samples(IMAGE, BATCH)
    found = adapter(tmp_path, path).step(x)
    np.testing.assert_allclose(np.exp(found) if log else found, assignments(x), rtol=0, atol=1e-5)
    assert read(tmp_path / "model-1.ttac")["outputs"][0]["name"] == "given"


NO_LINEAR_LAYER = """
net (float[batch,4,8,8] x) => (float[batch,4] y) {
  c = Relu (x)
  p = GlobalAveragePool (c)
  y = Flatten (p)
}
"""


def test_what_has_no_features_is_refused(tmp_path: Path) -> None:
    path = saved(source(NO_LINEAR_LAYER, {}), tmp_path)
    assert "no linear layer" in refused(UnsupportedError, path, method="lame")


def test_what_predicts_no_class_is_refused(tmp_path: Path) -> None:
    """A class at every position is not one of the sample."""
    model = onnx.load(MODELS["resnet"])
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    model.graph.output[0].name = convolution.output[0]
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(model, tmp_path / "model.onnx")
    assert "no prediction of one" in refused(UnsupportedError, tmp_path / "model.onnx", method="lame")
