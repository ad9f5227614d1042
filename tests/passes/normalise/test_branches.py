"""`normalise` writes an If as nodes: one branch where shapes or constants decide, else both and a Where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from tests.support.normal_forms import normal, refused
from tests.support.source_models import listing, source
from ttac.errors import UnsupportedError
from ttac.passes.graph.execute import run

SQUEEZED = """
net (float[N,1,4] x) => (float[N,4] y) {
  s = Shape (x)
  n = Gather (s, place)
  c = Equal (n, one)
  z = If (c) <
    then_branch = g1 () => (float[N,4] a) { axes = Constant <value_ints = [1]> ()  a = Squeeze (x, axes) },
    else_branch = g2 () => (float[N,1,4] b) { b = Identity (x) }
  >
  d = Cast <to = 9> (n)
  y = If (d) <
    then_branch = g3 () => (float[N,4] a) { a = Relu (z) },
    else_branch = g4 () => (float[N,4] b) { b = Neg (z) }
  >
}"""

CHECKED = """
net (float[1,4] x) => (float[1,1] y) {
  [score] p = ReduceMax <keepdims = 1> (x, axes)
  more = Greater (p, half)
  y = If (more) <
    then_branch = g1 () => (float[1,1] a) { m = MatMul (x, kernel)  a = Sigmoid (m) },
    else_branch = g2 () => (float[1,1] b) { b = Identity (p) }
  >
}"""


def checked_source() -> onnx.ModelProto:
    kernel = np.arange(4, dtype=np.float32).reshape(4, 1) - 1.5
    return source(CHECKED, {"axes": np.array([1]), "half": np.array(0.5, np.float32), "kernel": kernel})


def test_a_size_decides_a_branch(tmp_path: Path) -> None:
    model = source(SQUEEZED, {"place": np.array(1), "one": np.array(1)})
    kinds = [line.split(" = ")[1].split(" ")[0] for line in listing(normal(model, tmp_path))]
    assert kinds == ["Squeeze", "Relu"]


def test_the_data_decide_for_each_sample(tmp_path: Path) -> None:
    proto = checked_source()
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.array([[0.1, 0.2, 0.3, 0.4], [0.9, 0.2, 0.3, 0.4], [0.5, -1, -2, 0.5]], np.float32)
    expected = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    assert (expected[0] == 0.4).all() and expected[1] != np.float32(0.9)
    (result,) = run(normal(proto, tmp_path), {"x": x}).values()
    assert np.array_equal(result, expected)


def test_branches_of_other_shapes_are_refused(tmp_path: Path) -> None:
    text = CHECKED.replace("b = Identity (p)", "b = Identity (x)")
    initial = {"axes": np.array([1]), "half": np.array(0.5, np.float32), "kernel": np.ones((4, 1), np.float32)}
    refused(UnsupportedError, source(text, initial), tmp_path, "control flow", "`If`")
