"""Detectors whose boxes and scores are two outputs: found by `inspect`, and evaluated as if joined in one output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import ttac
from benchmarks.drawn import SIDE, shapes
from tests.conftest import Run
from ttac.evaluation.answers import Reading
from ttac.inspection import inspect_model
from ttac.runtime.records import HeadSpec
from ttac.samples.box_outputs import box_outputs

JOINED = Path(__file__).parents[2] / "benchmarks" / "small_nets" / "detector.onnx"
CORNERS = np.array([[1, 0, -0.5, 0], [0, 1, 0, -0.5], [1, 0, 0.5, 0], [0, 1, 0, 0.5]], np.float32) / SIDE
"""Matrix from centre and size in pixels to corners as fractions of the image."""


def apart(folder: Path, corners: bool) -> Path:
    """The small detector with the outputs `boxes` [N, 256, 4] and `scores` [N, 256, 3]."""
    model = onnx.load(JOINED)
    graph = model.graph
    joined = graph.node[-1]
    arrays = {"matrix": CORNERS if corners else np.eye(4, dtype=np.float32)}
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    graph.node.extend([
        helper.make_node("Concat", joined.input[:-1], ["b0"], axis=1),
        helper.make_node("MatMul", ["matrix", "b0"], ["b1"]),
        helper.make_node("Transpose", ["b1"], ["boxes"], perm=[0, 2, 1]),
        helper.make_node("Transpose", joined.input[-1:], ["scores"], perm=[0, 2, 1]),
    ])  # fmt: skip
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 256, size])
        for name, size in (("boxes", 4), ("scores", 3))
    )
    path = folder / "apart.onnx"
    onnx.save(model, path)
    return path


def samples(file: Path, scale: float) -> Path:
    """Images with boxes in pixels, or as fractions of the image."""
    images, boxes = shapes(24, 7)
    labels = np.where(boxes[..., :1] < 0, -1, np.concatenate([boxes[..., :1], boxes[..., 1:] * scale], 2))
    np.savez(file, clean=images.astype(np.float32) / 255, labels=labels.astype(np.float32))
    return file


def error_of(run: Run, model: Path, data: Path, *more: str) -> float:
    seen = run("eval", str(model), "--data", str(data), "--methods", "source", "--batch", "8", "--json", *more)
    assert seen.code == 0, seen.err
    return float(json.loads(seen.out)["rows"][0]["error"])


@pytest.mark.slow
@pytest.mark.parametrize("corners", [False, True])
def test_the_error_is_that_of_one_output(run: Run, tmp_path: Path, corners: bool) -> None:
    pytest.importorskip("pycocotools")
    pixels, fractions = samples(tmp_path / "pixels.npz", 1), samples(tmp_path / "fractions.npz", 1 / SIDE)
    one = error_of(run, JOINED, pixels, "-o", str(tmp_path / "one"))
    two = error_of(run, apart(tmp_path, corners), fractions if corners else pixels, "--logits", "scores")
    assert 0 < one < 0.5 and two == pytest.approx(one, abs=1e-3)


def test_boxes_beside_the_scores_name_the_axis(tmp_path: Path) -> None:
    path = apart(tmp_path, corners=True)
    assert inspect_model(path, logits="scores")["head"] == (
        "detection: 3 times yes or no along axis 2, boxes in `boxes`, probabilities"
    )
    bundle = ttac.compile(path, method="tent", batch=4, logits="scores", dry_run=True)
    assert (bundle.manifest["head"]["boxes"], bundle.manifest["head"]["axis"]) == ("boxes", 2)


@pytest.mark.parametrize("values", ["probabilities", "logits"])
def test_scores_without_an_axis_are_those_of_one_class(values: str) -> None:
    pytest.importorskip("pycocotools")
    random, boxes = np.random.default_rng(0), box_outputs("b", ["N", 50, 4])[0]
    scores = random.uniform(0.01, 0.99, (3, 50)).astype(np.float32)
    scores = scores if values == "probabilities" else np.log(scores / (1 - scores))
    centred = random.uniform(0.1, 0.9, (3, 50, 4)).astype(np.float32)
    read = []
    for axis, array in ((None, scores), (2, scores[..., None])):
        head = HeadSpec(kind="detection", axis=axis, values=values, output="s", count=1, boxes="b")
        reading = Reading(head=head, output="s", axis=0, count=1, boxes=boxes)
        read.append(reading.read({"s": array, "b": centred}))
    assert (read[0].answers[:, 0, 0] == 0).all()
    for found, expected in zip(vars(read[0]).values(), vars(read[1]).values(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_corners_become_centres() -> None:
    centred = np.random.default_rng(0).uniform(0.1, 0.9, (2, 50, 4)).astype(np.float32)
    corners = np.concatenate([centred[..., :2] - centred[..., 2:] / 2, centred[..., :2] + centred[..., 2:] / 2], 2)
    reading = box_outputs("b", ["N", 50, 4])[0]
    np.testing.assert_array_equal(reading.read({"b": centred}), centred)
    np.testing.assert_allclose(reading.read({"b": corners}), centred, atol=1e-6)
    turned = box_outputs("b", [4, "N", 50], 1)[0]
    np.testing.assert_array_equal(turned.read({"b": centred.transpose(2, 0, 1)}), centred)
