"""Norms below recurrent layers train: a reader of text lines with LSTM or GRU adapts end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import ttac
from tests.support.real_files import BODY, images, plain, written

STEPS = f"""{BODY}
  g = ReduceMean <axes = [2], keepdims = 0> (r)
  t = Transpose <perm = [2, 0, 1]> (g)
"""
READERS = {
    "lstm": 'q, last = LSTM <hidden_size = 3, direction = "bidirectional"> (t, wl, rl, bl)',
    "gru": 'q = GRU <hidden_size = 3, direction = "bidirectional", linear_before_reset = 1> (t, wg, rg, bg)',
}
REST = """
  u = Transpose <perm = [0, 2, 1, 3]> (q)
  shape = Constant <value_ints = [0, 0, 6]> ()
  k = Reshape (u, shape)
  y = MatMul (k, wo)
"""


def recurrent_weights() -> dict[str, np.ndarray]:
    """Weights of both layers, from 8 features to 3 hidden in two directions, and of 5 classes."""
    random = np.random.default_rng(3)
    shapes = {"wl": (2, 12, 8), "rl": (2, 12, 3), "bl": (2, 24), "wg": (2, 9, 8), "rg": (2, 9, 3), "bg": (2, 18)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in {**shapes, "wo": (6, 5)}.items()}


@pytest.mark.parametrize("kind", sorted(READERS))
@pytest.mark.parametrize("method", ["tent", "surgeon"])
def test_norms_below_a_recurrent_layer_train(kind: str, method: str, tmp_path: Path) -> None:
    nodes = f"{STEPS}  {READERS[kind]} {REST}"
    path = written(tmp_path, "(float[N,3,8,12] x) => (float[12,N,5] y)", nodes, recurrent_weights())
    bundle = ttac.compile(path, method=method, batch=4, output=tmp_path / "b.ttac", settings={"lr": 0.05})
    assert bundle.manifest["verified"]["derivative"] < 1e-2
    adapter, x = ttac.load(tmp_path / "b.ttac"), images(4, 3, 8, 12)
    np.testing.assert_allclose(adapter.predict(x).shape, (12, 4, 5))
    before = plain(path, x)["y"]
    for seed in range(3):
        adapter.step(images(4, 3, 8, 12, seed=seed))
    assert np.abs(adapter.predict(x) - before).max() > 1e-3


def test_a_bundle_steps_back_through_time_in_one_node(tmp_path: Path) -> None:
    nodes = f"{STEPS}  {READERS['lstm']} {REST}"
    path = written(tmp_path, "(float[N,3,8,12] x) => (float[12,N,5] y)", nodes, recurrent_weights())
    ttac.compile(path, method="tent", batch=4, output=tmp_path / "b.ttac")
    graphs = [onnx.load(str(file), load_external_data=False).graph for file in (tmp_path / "b.ttac").glob("*.onnx")]
    scans = [node for graph in graphs for node in graph.node if node.op_type == "Scan"]
    assert 2 <= len({node.name for node in scans}) <= 4
