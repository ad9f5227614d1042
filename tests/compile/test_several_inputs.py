"""A model with several inputs: a step takes all of them by name, each with its own axis of samples, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.real_files import POOLED, plain, written
from ttac import bake
from ttac.cli import main
from ttac.errors import UsageError

SIGNATURE = (
    "(bool[N,5] mask, float[1] temperature, float[N,3,8,8] x, float[2,N,5] state, int64[N,4] ids) => (float[N,5] y)"
)
NODES = f"""{POOLED}
  y0 = MatMul (f, wf)
  kept = Cast <to = 1> (mask)
  y1 = Mul (y0, kept)
  moved = ReduceMean <axes = [0], keepdims = 0> (state)
  y2 = Add (y1, moved)
  e = Gather (table, ids)
  words = ReduceMean <axes = [1], keepdims = 0> (e)
  y3 = Add (y2, words)
  y = Div (y3, temperature)
"""
TABLE = np.random.default_rng(3).standard_normal((7, 5)).astype(np.float32)
TIMES = """
  c = Conv (t, w1)
  n = BatchNormalization (c, s, b, m, v)
  r = Relu (n)
  f = ReduceMean <axes = [2], keepdims = 0> (r)
  y = MatMul (f, wf)
"""
"""From t [N, 6, T]."""


def feeds(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random inputs of `count` samples."""
    random = np.random.default_rng(seed)
    return {
        "mask": random.random((count, 5)) > 0.3,
        "temperature": np.array([2.0], np.float32),
        "x": random.standard_normal((count, 3, 8, 8)).astype(np.float32),
        "state": random.standard_normal((2, count, 5)).astype(np.float32),
        "ids": random.integers(0, 7, (count, 4)),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with a mask, a temperature, images, states on the second axis, and words."""
    return written(tmp_path, SIGNATURE, NODES, {"table": TABLE})


def compiled(model: Path, method: str, **choices: object) -> ttac.Adapter:
    """Compile for 4 samples beside the model, and load."""
    folder = model.parent / f"{method}.ttac"
    ttac.compile(model, method=method, batch=4, output=folder, **choices)  # type: ignore[arg-type]
    return ttac.load(folder)


def test_source_equals_onnxruntime(model: Path) -> None:
    adapter = compiled(model, "source")
    assert [(spec.name, spec.shape) for spec in adapter.inputs][:4] == [
        ("mask", ("N", 5)),
        ("temperature", (1,)),
        ("x", ("N", 3, 8, 8)),
        ("state", (2, "N", 5)),
    ]
    for count in (4, 3, 1):
        expected = plain(model, feeds(count))["y"]
        np.testing.assert_allclose(adapter.step(feeds(count)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["bn", "leantta", "tent", "sar", "eata", "surgeon"])
def test_methods_learn_as_with_constants(method: str, model: Path) -> None:
    """The other inputs at the values of zero and one give the bundle of a model without them."""
    neutral = {"mask": np.ones((4, 5), bool), "temperature": np.ones(1, np.float32)}
    neutral |= {"state": np.zeros((2, 4, 5), np.float32), "ids": np.zeros((4, 4), np.int64)}
    whole = compiled(model, method)
    (folder := model.parent / "alone").mkdir()
    constant = f"{POOLED} y0 = MatMul (f, wf) \n y = Add (y0, row)"
    path = written(folder, "(float[N,3,8,8] x) => (float[N,5] y)", constant, {"row": TABLE[0]})
    alone = compiled(path, method)
    for seed in range(3):
        x = feeds(4, seed)["x"]
        np.testing.assert_allclose(whole.step({"x": x, **neutral}), alone.step(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": np.ones((3, 5), bool)}, "`mask` [3, 5] holds 3"),
        ({"state": np.ones((4, 2, 5), np.float32)}, "has shape [4, 2, 5]; the model takes [2, 1 to 4, 5]"),
        ({"temperature": np.float32(1)}, "has shape []; the model takes [1]"),
        ({"mask": np.ones((4, 5), np.float32)}, "has dtype float32; the model takes bool"),
        ({"ids": None}, "the model takes the inputs `mask`"),
        ({"other": np.ones(4)}, "`other`"),
    ],
)
def test_wrong_inputs_change_nothing(change: dict[str, np.ndarray | None], words: str, model: Path) -> None:
    adapter = compiled(model, "tent")
    adapter.step(feeds(4))
    before = adapter.predict(feeds(4))
    wrong = {name: array for name, array in {**feeds(4), **change}.items() if array is not None}
    with pytest.raises(UsageError) as refusal:
        adapter.step(wrong)
    assert words in str(refusal.value)
    np.testing.assert_array_equal(adapter.predict(feeds(4)), before)
    with pytest.raises(UsageError, match="got a single array"):
        adapter.step(feeds(4)["x"])


def test_a_step_leaves_out_samples_with_nan(model: Path) -> None:
    adapter, other = compiled(model, "tent"), compiled(model, "tent")
    bad = feeds(4)
    bad["state"][1, 2, 0] = np.nan
    rows = [0, 1, 3]
    good = {
        name: a if name == "temperature" else np.take(a, rows, int(name == "state")) for name, a in feeds(4).items()
    }
    found, expected = adapter.step(bad), other.step(good)
    np.testing.assert_array_equal(found[rows], expected)
    assert np.isnan(found[2]).all() and adapter.stats["not_finite"] == 1
    bad["temperature"][0] = np.nan
    assert np.isnan(adapter.step(bad)).all() and adapter.stats["not_finite"] == 5


def test_the_session_takes_feeds_as_onnxruntime_does(model: Path) -> None:
    compiled(model, "bn")
    session = ttac.InferenceSession(model.parent / "bn.ttac", adapt=False)
    assert [value.name for value in session.get_inputs()] == ["mask", "temperature", "x", "state", "ids"]
    assert session.run(None, feeds(2))[0].shape == (2, 5)


def test_run_streams_arrays_by_name(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled(model, "source", calibration=feeds(32))
    np.savez(tmp_path / "s.npz", **feeds(10), labels=np.zeros(10, np.int64))  # type: ignore[arg-type]
    bundle, out = str(tmp_path / "source.ttac"), tmp_path / "o.npz"
    assert main(["run", bundle, str(tmp_path / "s.npz"), "-o", str(out)]) == 0
    assert "error" in capsys.readouterr().out
    with np.load(out) as arrays:
        np.testing.assert_allclose(arrays["logits"], plain(model, feeds(10))["y"], rtol=1e-5, atol=1e-6)
    for change, words in (
        ({"mask": np.ones((9, 5), bool)}, "the arrays differ in their number of samples"),
        ({"x": np.ones((10, 3, 8, 9), np.float32)}, "the array of the input `x` has shape [10, 3, 8, 9]"),
        ({"ids": np.ones((10, 4), np.float32)}, "the array of the input `ids` is float32"),
    ):
        np.savez(tmp_path / "w.npz", **{**feeds(10), **change})  # type: ignore[arg-type]
        assert main(["run", bundle, str(tmp_path / "w.npz")]) == 2
        assert words in capsys.readouterr().err
    np.savez(tmp_path / "w.npz", x=feeds(10)["x"])
    assert main(["run", bundle, str(tmp_path / "w.npz")]) == 2
    assert "there is no array for the input `mask`" in capsys.readouterr().err


def test_a_baked_model_keeps_all_inputs(model: Path, tmp_path: Path) -> None:
    adapter = compiled(model, "tent", settings={"lr": 0.1})
    adapter.step(feeds(4))
    adapter.save(tmp_path / "state.safetensors")
    bake.bake(tmp_path / "tent.ttac", tmp_path / "state.safetensors", tmp_path / "baked.onnx", force=True)
    assert plain(tmp_path / "baked.onnx", feeds(2))["y"].shape == (2, 5)


@pytest.mark.parametrize(("size", "choices"), [("batch", {}), ("rows", {"batch_axis": {"x": 1}})])
def test_samples_on_the_second_axis(size: str, choices: dict[str, object], tmp_path: Path) -> None:
    more = {"w1": np.random.default_rng(1).standard_normal((8, 6, 3)).astype(np.float32)}
    nodes = f"t = Transpose <perm = [1, 2, 0]> (x) {TIMES}"
    path = written(tmp_path, f"(float[12,{size},6] x) => (float[{size},5] y)", nodes, more)
    (folder := tmp_path / "first").mkdir()
    first = written(folder, "(float[N,12,6] x) => (float[N,5] y)", nodes.replace("[1, 2, 0]", "[0, 2, 1]"), more)
    x = np.random.default_rng(0).standard_normal((12, 40, 6)).astype(np.float32)
    for method in ("source", "bn", "leantta", "tent", "eata"):
        found = compiled(path, method, calibration={"x": x}, **choices)
        expected = compiled(first, method, calibration=x.swapaxes(0, 1))
        assert found.inputs[0].shape == (12, "N", 6)
        for start in range(0, 12, 4):
            part = x[:, start : start + 4]
            np.testing.assert_allclose(found.step(part), expected.step(part.swapaxes(0, 1)), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"has shape \[4, 12, 6\]"):
        found.step(x[:, :4].swapaxes(0, 1))


@pytest.mark.parametrize("choice", ["z=0", "x=4", "x=first", "x=none"])
def test_an_axis_that_does_not_exist(choice: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(model), "--method", "bn", "--batch-axis", choice]) == 2
    assert f"`--batch-axis {choice}`" in capsys.readouterr().err


def test_an_open_size_follows_its_name(tmp_path: Path) -> None:
    nodes = "e = Gather (table, ids) \n k = Cast <to = 1> (mask) \n z = ReduceSum <keepdims = 0> (k)"
    nodes += "\n h = ReduceMean <axes = [1], keepdims = 0> (e) \n y = Add (h, z)"
    path = written(tmp_path, "(int64[N,L] ids, bool[1,L] mask) => (float[N,5] y)", nodes, {"table": TABLE})
    adapter = compiled(path, "source", shape="6")
    assert [spec.shape for spec in adapter.inputs] == [("N", 6), (1, 6)]
    adapter = compiled(path, "source", shape="ids=6,mask=1x6")
    x = {"ids": np.ones((2, 6), np.int64), "mask": np.ones((1, 6), bool)}
    np.testing.assert_allclose(adapter.step(x), plain(path, x)["y"], rtol=1e-5)
    with pytest.raises(UsageError, match="the model has no input `words`"):
        compiled(path, "source", shape={"words": (6,)})
