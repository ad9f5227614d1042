"""Seeded random detectors of the YOLO forms: the axis of the scores is found, and options that contradict are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.source_models import Weights, saved, source
from ttac.errors import UnsupportedError, UsageError
from ttac.inspection import inspect_model
from ttac.passes.differentiate.heads import Head, decide_head
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise

FORMS = {
    "[N, 4+C, A]": 'b = Conv (x, "box") s = Conv (x, "score") p = Sigmoid (s) b2 = Reshape (b, flat) p2 = Reshape (p, flat) '
    "y = Concat <axis = 1> (b2, p2)",
    "[N, A, 5+C]": 'b = Conv (x, "box") o = Conv (x, "object") s = Conv (x, "score") q = Sigmoid (o) p = Sigmoid (s) '
    "j = Concat <axis = 1> (b, q, p) k = Reshape (j, flat) y = Transpose <perm = [0,2,1]> (k)",
}  # fmt: skip


def drawn(form: str, seed: int, folder: Path) -> tuple[Path, int, int]:
    """Write a detector with random sizes, also as many classes as boxes; return its number of classes and of boxes."""
    random = np.random.default_rng(seed)
    side, classes = int(random.integers(2, 6)), int(random.integers(1, 30))
    boxes, joined = side * side, 4 + classes + ("5" in form)
    sizes = f"{joined},{boxes}" if form.startswith("[N, 4") else f"{boxes},{joined}"
    text = f"net (float[N,3,{side},{side}] x) => (float[N,{sizes}] y) {{ {FORMS[form]} }}"
    shapes = {"box": (4, 3, 1, 1), "score": (classes, 3, 1, 1), "object": (1, 3, 1, 1)}
    weights: Weights = {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items() if f'"{n}"' in text}
    return saved(source(text, {**weights, "flat": np.array([0, -1, boxes], np.int64)}), folder), classes, boxes


def head_of(path: Path, **choices: object) -> Head:
    return decide_head(normalise(load(path)).graph.outputs[0], **choices)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", FORMS)
def test_the_axis_is_found_and_may_be_stated(form: str, seed: int, tmp_path: Path) -> None:
    path, classes, boxes = drawn(form, seed, tmp_path)
    axis, objectness = (2, True) if "5" in form else (1, False)
    head = head_of(path)
    assert (head.kind, head.axis, head.first, head.outputs) == ("detection", axis, 4, classes + objectness)
    assert head.objectness == objectness and head.positions == ("N", boxes)
    assert head == head_of(path, option="detection") == head_of(path, axis=axis)
    assert f"along axis {axis}, behind 4 coordinates" in inspect_model(path)["head"]
    for option in ("dense", "classes", "ctc", "multilabel"):
        with pytest.raises(UnsupportedError, match="joins scores and other numbers"):
            head_of(path, option=option)
    with pytest.raises(UnsupportedError, match=f"axis {axis}"):
        head_of(path, axis=3 - axis)
    for missing in (0, 3, -1):
        with pytest.raises(UsageError, match=f"no axis {missing} of classes"):
            head_of(path, axis=missing)
