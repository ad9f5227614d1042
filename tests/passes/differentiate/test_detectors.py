"""Outputs of detectors and of readers of text: the parts that are scores, and the positions that count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import ttac
from tests.support.source_models import Weights, norm, saved, source
from ttac.errors import TtacError, UnsupportedError, UsageError
from ttac.inspection import inspect_model
from ttac.passes.differentiate.head_clues import reads_text
from ttac.passes.differentiate.heads import Head, decide_head
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.reports.live_figures import LiveFigures
from ttac.runtime.manifest import parse_manifest
from ttac.runtime.records import HeadSpec
from ttac.samples.predictions import Tally, counted_classes, counted_positions, entropies

BODY = """
  c = Conv <pads = [1,1,1,1], strides = [2,2]> (x, "conv.weight")
  n = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  f = Relu (n)
"""
ENDINGS = {
    "v8": ("N,7,16", """
  b = Conv (f, "box")
  s = Conv (f, "score")
  e = Exp (b)
  p = Sigmoid (s)
  b2 = Reshape (e, flat4)
  p2 = Reshape (p, flat3)
  y = Concat <axis = 1> (b2, p2)
"""),
    "v8 transposed": ("N,16,7", """
  b = Conv (f, "box")
  s = Conv (f, "score")
  p = Sigmoid (s)
  b2 = Reshape (b, flat4)
  p2 = Reshape (p, flat3)
  j = Concat <axis = 1> (b2, p2)
  y = Transpose <perm = [0,2,1]> (j)
"""),
    "x": ("N,16,8", """
  b = Conv (f, "box")
  o = Conv (f, "object")
  s = Conv (f, "score")
  q = Sigmoid (o)
  p = Sigmoid (s)
  j = Concat <axis = 1> (b, q, p)
  k = Reshape (j, flat8)
  y = Transpose <perm = [0,2,1]> (k)
"""),
    "v5": ("N,16,8", """
  a = Conv (f, "all")
  k = Reshape (a, flat8)
  t = Transpose <perm = [0,2,1]> (k)
  g = Sigmoid (t)
  b, p = Split <axis = 2> (g, parts)
  e = Mul (b, two)
  y = Concat <axis = 2> (e, p)
"""),
}  # fmt: skip
WEIGHTS: Weights = {
    "conv.weight": (6, 3, 3, 3), **norm("bn", 6), "box": (4, 6, 1, 1), "object": (1, 6, 1, 1), "score": (3, 6, 1, 1),
    "all": (8, 6, 1, 1), "two": np.asarray(np.float32(2)),
    **{f"flat{n}": np.array([-1, n, 16], np.int64) for n in (3, 4, 8)}, "parts": np.array([4, 4], np.int64),
}  # fmt: skip
LAYOUTS = {"v8": (1, 4, 3, False), "v8 transposed": (2, 4, 3, False), "x": (2, 4, 4, True), "v5": (2, 4, 4, True)}


def detector(ending: str) -> onnx.ModelProto:
    shape, lines = ENDINGS[ending]
    random = np.random.default_rng(5)
    text = f"net (float[N,3,8,8] x) => (float[{shape}] y) {{ {BODY} {lines} }}"
    names = {name for name in WEIGHTS if f'"{name}"' in text or f"{name})" in text or f"{name}," in text}
    weights = {
        name: random.normal(size=size).astype(np.float32) if name in ("conv.weight", "box", "object", "score", "all") else size
        for name, size in WEIGHTS.items()
        if name in names
    }  # fmt: skip
    return source(text, weights)


def images(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)


def head_of(ending: str, folder: Path, **choices: object) -> Head:
    model = normalise(load(saved(detector(ending), folder)))
    return decide_head(model.graph.outputs[0], **choices)  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", list(ENDINGS))
def test_the_scores_of_a_detector_are_found(ending: str, tmp_path: Path) -> None:
    head = head_of(ending, tmp_path)
    assert head.kind == "detection" and head.binary and head.classes == 2
    assert (head.axis, head.first, head.outputs, head.objectness) == LAYOUTS[ending]
    assert head.positions == ("N", 16) and "behind 4 coordinates" in str(head)


@pytest.mark.parametrize("option", ["dense", "binary", "ctc"])
def test_no_reading_mixes_boxes_and_scores(option: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="joins scores and other numbers") as caught:
        head_of("v8", tmp_path, option=option)
    assert "--head detection" in str(caught.value.hint)


@pytest.mark.parametrize("ending", list(ENDINGS))
@pytest.mark.parametrize("method", ["tent", "sar", "eata"])
def test_a_detector_adapts(ending: str, method: str, tmp_path: Path) -> None:
    """The compile verifies the gradient; the entropy is that of the scores, computed from the output by numpy."""
    path = saved(detector(ending), tmp_path)
    bundle = ttac.compile(path, output=tmp_path / "b.ttac", method=method, batch=4)
    assert bundle.manifest["verified"]["derivative"] < 5e-3
    axis, first, count, _ = LAYOUTS[ending]
    entry = {
        "output": "y",
        "kind": "detection",
        "axis": axis,
        "values": "probabilities",
        "first": first,
        "count": count,
    }
    more = {"objectness": True} if LAYOUTS[ending][3] else {}
    assert bundle.manifest["head"] == {**entry, "ignored": None, **more}
    adapter = ttac.load(tmp_path / "b.ttac")
    output = adapter.step(images())
    p = output.take(range(first, first + count), axis=axis).astype(np.float64).clip(1e-7, 1 - 1e-6)
    expected = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean(axis)
    assert adapter.stats["entropy"] == pytest.approx(expected.mean(), rel=1e-4)


@pytest.mark.parametrize("ending", ["v8", "v5"])
def test_a_divisor_is_no_residual_of_eight_bits(ending: str, tmp_path: Path) -> None:
    """The gradient of the scores divides by probabilities, and eight bits make the small ones 0."""
    model = detector(ending)
    scores = next(tensor for tensor in model.graph.initializer if tensor.name in ("score", "all"))
    scores.CopyFrom(onnx.numpy_helper.from_array(6 * onnx.numpy_helper.to_array(scores), scores.name))
    bundle = ttac.compile(saved(model, tmp_path), method="surgeon", batch=512, dry_run=True)
    assert 0 < bundle.manifest["verified"]["residuals"] < 0.5
    assert any(row["because"] == "a gradient divides by it" for row in bundle.report["plan"])


def test_the_most_confident_boxes_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttac.passes.differentiate.losses.BOXES", 5)
    ttac.compile(saved(detector("x"), tmp_path), output=tmp_path / "b.ttac", method="tent", batch=4)
    adapter = ttac.load(tmp_path / "b.ttac")
    p = adapter.step(images())[:, :, 4:].astype(np.float64).clip(1e-7, 1 - 1e-6)
    each = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean(2)
    confidence = p[..., 0] * p[..., 1:].max(2)
    best = np.take_along_axis(each, confidence.argsort(1)[:, -5:], 1)
    assert adapter.stats["entropy"] == pytest.approx(best.mean(), rel=1e-4)
    monkeypatch.setattr("ttac.samples.predictions.BOXES", 5)
    adapter.reset()
    output = adapter.step(images())
    check_reports(adapter, output)
    classes = p[..., 1:].argmax(2)
    chosen = np.take_along_axis(classes, confidence.argsort(1)[:, -5:], 1)
    head = parse_manifest(adapter.bundle.manifest).head
    assert head is not None
    np.testing.assert_array_equal(sorted(counted_classes(output, head)), sorted(chosen.ravel()))


FACES = """
net (float[N,3,8,8] x) => (float[N,16] scores, float[N,16,4] boxes) {
  %s
  b = Conv (f, "box")
  b2 = Reshape (b, "flat4")
  boxes = Transpose <perm = [0,2,1]> (b2)
  s = Conv (f, "object")
  s2 = Flatten (s)
  scores = Sigmoid (s2)
}
"""


@pytest.mark.parametrize("method", ["tent", "sar", "eata"])
def test_one_score_for_each_box(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors of faces give [N, boxes] beside the boxes: no classes, a yes or no for each box."""
    monkeypatch.setattr("ttac.passes.differentiate.losses.BOXES", 5)
    monkeypatch.setattr("ttac.samples.predictions.BOXES", 5)
    random = np.random.default_rng(5)
    drawn = {name: random.normal(size=WEIGHTS[name]).astype(np.float32) for name in ("conv.weight", "box", "object")}
    path = saved(source(FACES % BODY, {**drawn, **norm("bn", 6), "flat4": WEIGHTS["flat4"]}), tmp_path)
    assert inspect_model(path, logits="scores")["head"] == "detection: yes or no, boxes in `boxes`, probabilities"
    bundle = ttac.compile(path, output=tmp_path / "b.ttac", method=method, batch=4, logits="scores")
    assert bundle.manifest["verified"]["derivative"] < 5e-3
    adapter = ttac.load(tmp_path / "b.ttac")
    scores = adapter.step(images())["scores"]
    p = scores.astype(np.float64).clip(1e-7, 1 - 1e-6)
    best = np.take_along_axis(-(p * np.log(p) + (1 - p) * np.log(1 - p)), p.argsort(1)[:, -5:], 1)
    assert adapter.stats["entropy"] == pytest.approx(best.mean(), rel=1e-4)
    check_reports(adapter, scores)


def check_reports(adapter: ttac.Adapter, output: np.ndarray) -> None:
    """`run`, `watch` and `eval` state the entropy of the loss: of frames and boxes that count."""
    manifest = adapter.bundle.manifest
    head = parse_manifest(manifest).head
    assert head is not None
    tally, live = Tally(head=head), LiveFigures(head=head)
    tally.add(output)
    live.add(output, len(output), 1.0, {})
    expected = pytest.approx(adapter.stats["entropy"], rel=1e-4)
    assert tally.mean_entropy == expected and live.entropy == expected
    counted = counted_positions(output, head)
    assert 0 < counted.sum() < counted.size and len(live.classes) <= counted.sum()


READER = """
net (float[N,3,8,8] x) => (float[N,4,6] y) {
  c = Conv <pads = [1,1,1,1], strides = [2,2]> (x, "conv.weight")
  n = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  f = Relu (n)
  m = ReduceMean <keepdims = 0> (f, two)
  t = Transpose <perm = [0,2,1]> (m)
  z = MatMul (t, "w")
  y = Softmax <axis = 2> (z)
}
"""


def reader(marked: bool = True, blank: int = 0, bias: float = 1.8) -> onnx.ModelProto:
    random = np.random.default_rng(1)
    kernel = 2 * random.normal(size=(8, 6))
    kernel[:, blank] += bias
    weights: Weights = {"conv.weight": random.normal(size=(8, 3, 3, 3)).astype(np.float32), **norm("bn", 8)}
    model = source(READER, {**weights, "two": np.array([2], np.int64), "w": kernel.astype(np.float32)})
    if marked:
        model.metadata_props.add(key="character", value="abcde")
    return model


def test_a_file_with_characters_reads_text(tmp_path: Path) -> None:
    model = normalise(load(saved(reader(), tmp_path)))
    assert reads_text(model)
    head = decide_head(model.graph.outputs[0], reads_text=True)
    assert (head.kind, head.axis, head.ignored) == ("ctc", 2, 0) and "without class 0" in str(head)
    plain = normalise(load(saved(reader(marked=False), tmp_path)))
    assert not reads_text(plain) and decide_head(plain.graph.outputs[0]).kind == "dense"
    assert inspect_model(saved(reader(), tmp_path))["head"].startswith("ctc: 6 classes along axis 2")


@pytest.mark.parametrize("method", ["tent", "sar", "eata"])
def test_frames_that_are_blank_do_not_count(method: str, tmp_path: Path) -> None:
    path = saved(reader(), tmp_path)
    bundle = ttac.compile(path, output=tmp_path / "b.ttac", method=method, batch=4)
    assert bundle.manifest["verified"]["derivative"] < 5e-3
    adapter = ttac.load(tmp_path / "b.ttac")
    p = adapter.step(images()).astype(np.float64)
    each, counted = -(p * np.log(p)).sum(2), p.argmax(2) != 0
    assert 0 < counted.sum() < counted.size
    assert adapter.stats["entropy"] == pytest.approx(each[counted].mean(), rel=1e-4)
    if method == "sar":
        assert adapter.stats["selected"] <= counted.sum()
    adapter.reset()
    check_reports(adapter, adapter.step(images()))


def test_samples_tell_which_class_is_the_blank(tmp_path: Path) -> None:
    for blank in (0, 5):
        path = saved(reader(blank=blank, bias=3.0), tmp_path)
        bundle = ttac.compile(path, method="tent", batch=4, calibration=images(16), dry_run=True)
        assert bundle.manifest["head"]["ignored"] == blank


def test_an_axis_names_the_classes(tmp_path: Path) -> None:
    """Three axes behind an operator that hides the layer of the features."""
    text = READER.replace('  z = MatMul (t, "w")\n  y = Softmax <axis = 2> (z)', "  y = CumSum (t, two)")
    text = text.replace("float[N,4,6]", "float[N,4,8]")
    model = reader(marked=False)
    replaced = source(text, {})
    del model.graph.node[:]
    model.graph.node.extend(replaced.graph.node)
    model.graph.output[0].CopyFrom(replaced.graph.output[0])
    path = saved(model, tmp_path)
    y = normalise(load(path)).graph.outputs[0]
    with pytest.raises(UnsupportedError, match="axis of the classes is unclear") as caught:
        decide_head(y)
    assert "--axis 2" in str(caught.value.hint)
    assert decide_head(y, "dense", 2).outputs == 8 and decide_head(y, "auto", 1).outputs == 4
    with pytest.raises(UsageError, match="no axis 3 of classes"):
        decide_head(y, "dense", 3)


def test_a_stated_axis_against_the_softmax_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TtacError, match="Softmax"):
        decide_head(normalise(load(saved(reader(), tmp_path))).graph.outputs[0], "dense", 1)


def test_the_scores_of_pairs_leave_the_background_out(tmp_path: Path) -> None:
    """SSD gives boxes and scores apart; the scores are a softmax with the background first."""
    y = normalise(load(saved(reader(), tmp_path))).graph.outputs[0]
    head = decide_head(y, "detection")
    assert (head.kind, head.axis, head.ignored, head.binary, head.first) == ("detection", 2, 0, False, 0)


def test_entropies_of_a_detector_leave_coordinates_out() -> None:
    output = np.random.default_rng(0).uniform(0.1, 0.9, (2, 7, 16))
    each = entropies(output, HeadSpec(kind="detection", axis=1, values="probabilities", first=4, count=3))
    p = output[:, 4:]
    np.testing.assert_allclose(each, -(p * np.log(p) + (1 - p) * np.log(1 - p)))
