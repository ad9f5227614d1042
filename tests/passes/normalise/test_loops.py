"""Loop and Scan of a bounded number of turns become the nodes of their turns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import ttac
from tests.support.normal_forms import normal, refused
from tests.support.real_files import BODY, images, written
from tests.support.source_models import source
from ttac.errors import UnsupportedError
from ttac.passes.graph.execute import run

LOOP = """
net (float[N,4] x) => (float[N,4] y) {
  last, rows = Loop (count, go, x) <
    body = g (int64 i, bool before, float[N,4] u) => (bool after, float[N,4] v, float[N,4] row) {
      after = Identity (before)
      f = Cast <to = 1> (i)
      s = Add (u, f)
      m = MatMul (s, w)
      v = Tanh (m)
      row = Mul (v, f)
    }
  >
  sum = ReduceSum <keepdims = 0> (rows, first)
  y = Add (sum, last)
}"""
SCAN = """
net (float[N,5,3] x) => (float[N,3] y) {
  zero = ReduceMean <keepdims = 0> (x, middle)
  last, rows = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [DIRECTION],
                     scan_output_axes = [-1], scan_output_directions = [BACK],
    body = g (float[N,3] h, float[N,3] e) => (float[N,3] k, float[N,3] row) {
      m = MatMul (h, w)
      a = Add (m, e)
      k = Tanh (a)
      row = Identity (k)
    }
  > (zero, x)
  t = MatMul (rows, v)
  u = Squeeze (t, last_axis)
  y = Sub (u, last)
}"""


def agrees(model: onnx.ModelProto, x: np.ndarray, folder: Path) -> None:
    form = normal(model, folder)
    assert not {node.op_type for node in form.graph} & {"Loop", "Scan"}
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = run(form, {"x": x}).values()
    np.testing.assert_allclose(found, session.run(None, {"x": x})[0], rtol=1e-5, atol=1e-6)


def test_a_loop_becomes_its_turns(tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    weights = {"count": np.array(3), "go": np.array(True), "first": np.array([0]), "w": w}
    agrees(source(LOOP, weights), images(5, 4), tmp_path)


@pytest.mark.parametrize("stated", [True, False])
def test_a_loop_ends_where_constants_decide(stated: bool, tmp_path: Path) -> None:
    """As tf2onnx writes a recurrent layer: the body compares its counter with the length, and the largest count says nothing."""
    text = LOOP.replace("after = Identity (before)", "after = Less (i, last_turn)")
    text = text if stated else text.replace("Loop (count,", "Loop (,")
    w = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    weights = {"count": np.array(2**31 - 1), "go": np.array(True), "first": np.array([0]), "w": w}
    weights = weights if stated else {name: array for name, array in weights.items() if name != "count"}
    agrees(source(text, {**weights, "last_turn": np.array(2)}), images(5, 4), tmp_path)


@pytest.mark.parametrize("backward", [0, 1])
@pytest.mark.parametrize("ordered", [0, 1])
def test_a_scan_becomes_its_turns(backward: int, ordered: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    text = SCAN.replace("DIRECTION", str(backward)).replace("BACK", str(ordered))
    weights = {"w": random.standard_normal((3, 3)), "v": random.standard_normal((5, 1))}
    typed = {name: array.astype(np.float32) for name, array in weights.items()}
    agrees(source(text, {**typed, "last_axis": np.array([-1]), "middle": np.array([1])}), images(4, 5, 3), tmp_path)


@pytest.mark.parametrize(("count", "ending"), [("turns", "Identity (before)"), ("count", "Less (i, turns)")])
def test_loops_that_the_data_end_are_refused(count: str, ending: str, tmp_path: Path) -> None:
    text = """
    net (float[N,4] x) => (float[N,4] y) {
      most = ReduceMax <keepdims = 0> (x)
      turns = Cast <to = 7> (most)
      [loop] y = Loop (COUNT, go, x) <
        body = g (int64 i, bool before, float[N,4] u) => (bool after, float[N,4] v) {
          after = ENDING
          v = Relu (u)
        }
      >
    }""".replace("COUNT", count).replace("ENDING", ending)
    model = source(text, {"count": np.array(3), "go": np.array(True)})
    refused(UnsupportedError, model, tmp_path, "control flow", "node `loop` (Loop)")


ENDED = """
net (float[N,4] x, float turns) => (float[N,4] y) {
  wanted = Cast <to = 7> (turns)
  first = Greater (wanted, nothing)
  y = Loop (count, first, x) <
    body = g (int64 i, bool before, float[N,4] u) => (bool after, float[N,4] v) {
      s = MatMul (u, w)
      v = Tanh (s)
      next = Add (i, one)
      after = Less (next, wanted)
    }
  >
}"""


@pytest.mark.parametrize("turns", [0, 1, 3, 9])
def test_an_input_ends_a_loop_before_its_largest_count(turns: int, tmp_path: Path) -> None:
    """Behind the end, the turns up to the largest count change nothing."""
    w = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    model = source(ENDED, {"count": np.array(5), "nothing": np.array(0), "one": np.array(1), "w": w})
    form = normal(model, tmp_path)
    assert not {node.op_type for node in form.graph} & {"Loop", "Scan"}
    feeds = {"x": images(5, 4), "turns": np.array(turns, np.float32)}
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(run(form, feeds)["y"], session.run(None, feeds)[0], rtol=1e-5, atol=1e-6)


def test_an_ended_loop_without_a_bound_is_refused(tmp_path: Path) -> None:
    weights = {"count": np.array(1 << 40), "nothing": np.array(0), "one": np.array(1), "w": np.eye(4, dtype="f4")}
    refused(UnsupportedError, source(ENDED, weights), tmp_path, "control flow", "(Loop)")


def test_a_loop_of_very_many_turns_is_refused(tmp_path: Path) -> None:
    weights = {"count": np.array(1 << 40), "go": np.array(True), "first": np.array([0]), "w": np.eye(4, dtype="f4")}
    refused(UnsupportedError, source(LOOP, weights), tmp_path, "control flow")


STEPS = f"""{BODY}
  g = ReduceMean <axes = [2], keepdims = 0> (r)
  t = Transpose <perm = [2, 0, 1]> (g)"""
AS_SCAN = """
  zero = ReduceMean <axes = [0], keepdims = 0> (t)
  last, rows = Scan <num_scan_inputs = 1, body = b (float[N,8] h, float[N,8] e) => (float[N,8] k, float[N,8] row) {
    p = MatMul (h, wh)
    a = Add (p, e)
    k = Tanh (a)
    row = Identity (k)
  }> (zero, t)
  y = MatMul (last, wf)"""
AS_RNN = """
  zero = ReduceMean <axes = [0], keepdims = 1> (t)
  rows, last = RNN <hidden_size = 8> (t, same, turned, , , zero)
  axes = Constant <value_ints = [0]> ()
  one = Squeeze (last, axes)
  y = MatMul (one, wf)"""


def test_norms_below_a_scan_train_as_below_an_rnn(tmp_path: Path) -> None:
    """Each compile compares its gradients with finite differences; those of RNN are also compared with PyTorch's."""
    wh = np.random.default_rng(5).standard_normal((8, 8)).astype(np.float32) / 3
    more = {"wh": wh, "same": np.eye(8, dtype=np.float32)[None], "turned": np.ascontiguousarray(wh.T[None])}
    adapters = []
    for kind, nodes in (("scan", AS_SCAN), ("rnn", AS_RNN)):
        (folder := tmp_path / kind).mkdir()
        path = written(folder, "(float[N,3,8,6] x) => (float[N,5] y)", STEPS + nodes, more)
        settings = {"lr": 0.05, "optimizer": "sgd", "guard": "off"}
        bundle = ttac.compile(path, method="tent", batch=4, output=folder / "b.ttac", settings=settings)
        assert bundle.manifest["verified"]["derivative"] < 1e-2
        adapters.append(ttac.load(folder / "b.ttac"))
    x = images(4, 3, 8, 6)
    before = adapters[0].predict(x)
    for seed in range(3):
        results = [adapter.step(images(4, 3, 8, 6, seed=seed)) for adapter in adapters]
        np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)
    assert np.abs(adapters[0].predict(x) - before).max() > 1e-3
