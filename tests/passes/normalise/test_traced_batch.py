"""The batch of a traced file becomes free, or the node that fixes it is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.normal_forms import normal, refused
from tests.support.source_models import Weights, listing, run, source
from ttac.errors import UnsupportedError

HEADED: Weights = {"fc.weight": (5, 12), "fc.bias": (5,)}


def samples(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 8])
def test_fixed_reshapes_are_freed(tmp_path: Path, batch: int) -> None:
    text = f"""
    net (float[{batch},3,2,2] x) => (float[{batch},5] y) {{
      [flat] f = Reshape (x, shape)
      y = Gemm <transB = 1> (f, "fc.weight", "fc.bias")
    }}"""
    lines: list[str] = []
    for target in ([batch, 12], [batch, -1], [-1, 12], [0, -1], [0, 12]):
        before = source(text, {**HEADED, "shape": np.array(target)})
        model = normal(before, tmp_path, say=lines.append)
        assert listing(model)[0] == "f [N,12] = Reshape (x, [-1, 12])"
        x = samples(batch, 3, 2, 2)
        np.testing.assert_allclose(run(model, x), run(before, x), rtol=1e-5)
        assert run(model, samples(5, 3, 2, 2)).shape == (5, 5)
    assert lines[0] == f"the batch, {batch} in the file, is free now: 1 nodes rewritten"


@pytest.mark.parametrize("batch", [1, 8])
def test_channels_are_shuffled_for_every_sample(tmp_path: Path, batch: int) -> None:
    text = f"""
    net (float[{batch},6,2,2] x) => (float[{batch},6,2,2] y) {{
      split = Reshape (x, apart)
      swapped = Transpose <perm = [0,2,1,3,4]> (split)
      y = Reshape (swapped, together)
    }}"""
    shapes = {"apart": np.array([batch, 2, 3, 2, 2]), "together": np.array([batch, 6, 2, 2])}
    model = normal(source(text, dict(shapes)), tmp_path)
    assert listing(model) == [
        "split [N,2,3,2,2] = Reshape (x, [-1, 2, 3, 2, 2])",
        "swapped [N,3,2,2,2] = Transpose (split) perm=(0, 2, 1, 3, 4)",
        "y [N,6,2,2] = Reshape (swapped, [-1, 6, 2, 2])",
    ]


@pytest.mark.parametrize("batch", [1, 4])
def test_heads_multiply_the_batch_where_it_is_not_first(tmp_path: Path, batch: int) -> None:
    """torch's MultiheadAttention works on [tokens, batch*heads, features]."""
    text = f"""
    net (float[{batch},6,8] x) => (float[{batch},6,8] y) {{
      t = Transpose <perm = [1,0,2]> (x)
      heads = Reshape (t, apart)
      first = Transpose <perm = [1,0,2]> (heads)
      r = Relu (first)
      back = Transpose <perm = [1,0,2]> (r)
      rows = Reshape (back, flat)
      whole = Reshape (rows, together)
      y = Transpose <perm = [1,0,2]> (whole)
    }}"""
    shapes = {"apart": [6, 2 * batch, 4], "flat": [6 * batch, 8], "together": [6, batch, 8]}
    before = source(text, {name: np.array(shape) for name, shape in shapes.items()})
    model = normal(before, tmp_path)
    lines = listing(model)
    assert lines[1] == "heads [6,2*N,4] = Reshape (t, [6, -1, 4])"
    assert lines[5] == "rows [6*N,8] = Reshape (back, [-1, 8])"
    assert lines[6] == "whole [6,N,8] = Reshape (rows, [6, -1, 8])"
    x = samples(batch, 6, 8)
    np.testing.assert_array_equal(run(model, x), run(before, x))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_class_token_is_repeated_for_every_sample(tmp_path: Path, batch: int) -> None:
    text = f"""
    net (float[{batch},6,8] x) => (float[{batch},8] y) {{
      joined = Concat <axis = 1> (token, x)
      placed = Add (joined, position)
      y = Gather <axis = 1> (placed, zero)
    }}"""
    token = samples(1, 1, 8).repeat(batch, 0)
    weights: Weights = {"token": token, "position": (1, 7, 8), "zero": np.array(0)}
    before = source(text, weights)
    model = normal(before, tmp_path)
    lines = listing(model)
    assert lines[0].endswith("= Shape (x) end=1 start=0") and lines[1].endswith(", [1, 8]) axis=0")
    assert "[N,1,8] = Expand (" in lines[2] and lines[3].startswith("joined [N,7,8] = Concat (")
    x = samples(batch, 6, 8)
    np.testing.assert_allclose(run(model, x), run(before, x))


def test_rows_made_for_each_traced_sample_shrink_to_one(tmp_path: Path) -> None:
    text = """
    net (float[4,6] x) => (float[4,6] y) { s = Mul (x, rows) y = Add (s, column) }"""
    before = source(text, {"rows": samples(1, 6).repeat(4, 0), "column": (1, 6)})
    model = normal(before, tmp_path)
    assert [model.graph[0].inputs[1].shape.dims] == [(1, 6)]  # type: ignore[union-attr]
    np.testing.assert_allclose(run(model, samples(4, 6)), run(before, samples(4, 6)))
    differing = source(text, {"rows": (4, 6), "column": (1, 6)})
    parts = ("exported with batch 4", "its operand `rows` has a different row for each sample", "dynamic_shapes")
    refused(UnsupportedError, differing, tmp_path, *parts)


def test_resize_leaves_the_batch_alone(tmp_path: Path) -> None:
    text = """
    net (float[2,3,4,4] x) => (float[2,3,8,8] y) { y = Resize <mode = "linear"> (x, , , sizes) }"""
    before = source(text, {"sizes": np.array([2, 3, 8, 8])})
    model = normal(before, tmp_path)
    (line,) = listing(model)
    assert line == "y [N,3,8,8] = Resize (x, -, -, [3, 8, 8]) axes=(1, 2, 3) mode=linear"
    np.testing.assert_allclose(run(model, samples(2, 3, 4, 4)), run(before, samples(2, 3, 4, 4)), rtol=1e-6)


def test_an_indexed_sequence_is_a_split(tmp_path: Path) -> None:
    """torch writes `chunk` like this when its export is not optimised."""
    text = """
    net (float[N,5,2] x) => (float[N,5,2] y) {
      parts = SplitToSequence <axis = 1, keepdims = 1> (x, size)
      a = SequenceAt (parts, zero)
      b = SequenceAt (parts, one)
      y = Concat <axis = 1> (b, a)
    }"""
    before = source(text, {"size": np.array(3), "zero": np.array(0), "one": np.array(1)})
    model = normal(before, tmp_path)
    assert listing(model) == [
        "parts.part [N,3,2], parts.part.1 [N,2,2] = Split (x, [3, 2]) axis=1",
        "y [N,5,2] = Concat (parts.part.1, parts.part) axis=1",
    ]


def test_a_sequence_of_a_constant_becomes_its_parts(tmp_path: Path) -> None:
    """torch's `chunk` of a table of rotary embeddings: both halves are constants, read by name afterwards."""
    text = """net (float[N,4] x) => (float[N,4] y) {
      table = Mul (one, angles) parts = SplitToSequence <axis = 0, keepdims = 1> (table, sizes)
      a = SequenceAt (parts, first) b = SequenceAt (parts, second) m = Mul (x, a) y = Add (m, b)
    }"""
    weights: Weights = {
        "one": np.ones((1, 4), np.float32), "angles": (2, 4), "sizes": np.array([1, 1]),
        "first": np.array(0), "second": np.array(1),
    }  # fmt: skip
    model = source(text, weights)
    result = normal(model, tmp_path)
    assert [node.op_type for node in result.graph] == ["Mul", "Add"]
    x = samples(3, 4)
    np.testing.assert_allclose(run(result, x), run(model, x), rtol=1e-6)


def test_an_expand_that_its_reader_does_anyway_is_dropped(tmp_path: Path) -> None:
    """torch's `expand_as`; it stays where the reader needs the whole shape."""
    text = """net (float[N,3,4] x) => (float[N,3,4] y) {
      m = ReduceMean (x, last) s = Shape (x) e = Expand (m, s) d = Sub (x, e) f = Expand (m, s) g = Relu (f)
      y = Add (d, g)
    }"""
    model = source(text, {"last": np.array([-1])})
    result = normal(model, tmp_path)
    assert [node.op_type for node in result.graph if node.op_type in ("Expand", "Sub")] == ["Sub", "Expand"]
    x = samples(2, 3, 4)
    np.testing.assert_allclose(run(result, x), run(model, x), rtol=1e-6)


def test_a_gather_of_all_elements_in_order_is_a_reshape(tmp_path: Path) -> None:
    """torch writes `as_strided` like this, behind a pooling in channels-last networks."""
    text = """
    net (float[1,6,1,1] x) => (float[1,6] y) {
      flat = Reshape (x, all)
      picked = Gather <axis = 0> (flat, places)
      y = Flatten (picked)
    }"""
    before = source(text, {"all": np.array([-1]), "places": np.arange(6).reshape(1, 6, 1, 1)})
    model = normal(before, tmp_path)
    assert [line.split(" = ")[0] for line in listing(model)] == ["flat [6*N]", "picked.reshape [N,6,1,1]", "y [N,6]"]


def test_initial_states_of_zeros_are_removed(tmp_path: Path) -> None:
    text = """
    net (float[4,5,3] x) => (float[4,5,1,2] y) {
      steps = Transpose <perm = [1,0,2]> (x)
      states = GRU <hidden_size = 2> (steps, w, r, , , start)
      y = Transpose <perm = [2,0,1,3]> (states)
    }"""
    weights: Weights = {"w": (1, 6, 3), "r": (1, 6, 2), "start": np.zeros((1, 4, 2), np.float32)}
    before = source(text, weights)
    model = normal(before, tmp_path)
    assert listing(model)[1] == "states [5,1,N,2] = GRU (steps, w, r) hidden_size=2"
    np.testing.assert_allclose(run(model, samples(4, 5, 3)), run(before, samples(4, 5, 3)), rtol=1e-5)


def test_a_free_batch_in_name_only_is_freed(tmp_path: Path) -> None:
    text = """
    net (float[batch,3,2,2] x) => (float[batch,5] y) {
      f = Reshape (x, shape)
      y = Gemm <transB = 1> (f, "fc.weight", "fc.bias")
    }"""
    lines: list[str] = []
    model = normal(source(text, {**HEADED, "shape": np.array([1, -1])}), tmp_path, say=lines.append)
    assert listing(model)[0] == "f [N,12] = Reshape (x, [-1, 12])"
    assert lines == ["the batch, 1 in the file, is free now: 1 nodes rewritten"]


@pytest.mark.parametrize(
    ("body", "culprit"),
    [
        ("[pick] y = Gather <axis = 0> (x, places)", "node `pick` (Gather)"),
        ("[mean] y = ReduceMean <keepdims = 0> (x, first)", "node `mean` (ReduceMean)"),
        ("[join] y = Concat <axis = 0> (x, extra)", "node `join` (Concat)"),
        ("[sq] s = Squeeze (x, first) [e] y = Unsqueeze (s, first)", "node `sq` (Squeeze)"),
    ],
)
def test_the_node_that_holds_on_to_the_batch_is_named(tmp_path: Path, body: str, culprit: str) -> None:
    text = f"net (float[1,4] x) => (float[n,4] y) {{ {body} }}"
    weights: Weights = {"places": np.array([0]), "first": np.array([0]), "extra": (2, 4)}
    parts = ("exported with batch 1", culprit, "dynamic_shapes")
    refused(UnsupportedError, source(text, weights), tmp_path, *parts)


@pytest.mark.parametrize("batch", ["1", "N"])
def test_samples_that_influence_each_other_are_refused(tmp_path: Path, batch: str) -> None:
    text = f"net (float[{batch},4] x) => (float[{batch},4] y) {{ y = Softmax <axis = 0> (x) }}"
    refused(UnsupportedError, source(text, {}), tmp_path, "influence each other", "hint: look for an operator")
    text = f"net (int64[{batch},4] x) => (float[{batch},4] y) {{ z = Cast <to = 1> (x) y = Softmax <axis = 0> (z) }}"
    refused(
        UnsupportedError, source(text, {}), tmp_path, "influence each other", "hint: give real samples, `--calibration"
    )
