"""Inputs of any dtype, and inputs that are held at a value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.real_files import POOLED, plain, written
from ttac.cli import main
from ttac.errors import UnsupportedError, UsageError

BYTES = f"""
  t = Transpose <perm = [0, 3, 1, 2]> (u)
  fl = Cast <to = 1> (t)
  x = Div (fl, k)
  {POOLED}
  y = MatMul (f, wf)
"""
TOKENS = """
  e = Gather (table, u)
  x = Transpose <perm = [0, 2, 1]> (e)
  c = Conv (x, w1)
  n = BatchNormalization (c, s, b, m, v)
  r = Relu (n)
  f = ReduceMean <axes = [2], keepdims = 0> (r)
  y = MatMul (f, wf)
"""
RANDOM = np.random.default_rng(0)
MORE = {
    "k": np.array(255, np.float32),
    "table": RANDOM.standard_normal((50, 6)).astype(np.float32),
    "w1": RANDOM.standard_normal((8, 6, 3)).astype(np.float32),
}


def compiled(model: Path, method: str, **choices: object) -> ttac.Adapter:
    """Compile for 4 samples beside the model, and load."""
    folder = model.parent / f"{method}.ttac"
    ttac.compile(model, method=method, batch=4, output=folder, **choices)  # type: ignore[arg-type]
    return ttac.load(folder)


@pytest.mark.parametrize("method", ["source", "bn", "leantta", "tent", "sar"])
def test_bytes_and_tokens(method: str, tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    tokens = RANDOM.integers(0, 50, (4, 12)).astype(np.int32)
    for signature, nodes, x in (
        ("(uint8[N,8,8,3] u) => (float[N,5] y)", BYTES, pixels),
        ("(int32[N,12] u) => (float[N,5] y)", TOKENS, tokens),
    ):
        path = written(tmp_path, signature, nodes, MORE)
        adapter = compiled(path, method)
        assert adapter.inputs[0].dtype == str(x.dtype)
        assert np.isfinite(adapter.step(x)).all()
        if method == "source":
            np.testing.assert_allclose(adapter.predict(x), plain(path, x)["y"], rtol=1e-5, atol=1e-6)
        with pytest.raises(UsageError, match=f"the model takes {x.dtype}"):
            adapter.step(x.astype(np.float32))


def test_bytes_stream_unchanged(tmp_path: Path) -> None:
    path = written(tmp_path, "(uint8[N,8,8,3] u) => (float[N,5] y)", BYTES, MORE)
    x = RANDOM.integers(0, 256, (10, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "s.npz", images=x)
    compiled(path, "source", calibration=tmp_path / "s.npz")
    folder, out = tmp_path / "source.ttac", tmp_path / "o.npz"
    assert main(["run", str(folder), str(tmp_path / "s.npz"), "-o", str(out)]) == 0
    with np.load(out) as arrays:
        np.testing.assert_allclose(arrays["logits"], plain(path, x)["y"], rtol=1e-5, atol=1e-5)


def test_augmentation_needs_floats(tmp_path: Path) -> None:
    path = written(tmp_path, "(uint8[N,8,8,3] u) => (float[N,5] y)", BYTES, MORE)
    with pytest.raises(UnsupportedError, match="only images of floats can be augmented; `u` is uint8"):
        compiled(path, "surgeon", settings={"cr": True})


SIDE = f"{POOLED} y0 = MatMul (f, wf) \n y = Div (y0, temperature)"
STATE = f"""{POOLED} h = ReduceMean <axes = [0], keepdims = 0> (state)
  y0 = MatMul (f, wf) \n y1 = Add (y0, h) \n fl = Cast <to = 1> (sr) \n y = Div (y1, fl)"""


@pytest.mark.parametrize("value", ["2.0", 2, np.array([2.0], np.float64)])
def test_a_held_input_is_a_constant(value: object, tmp_path: Path) -> None:
    path = written(tmp_path, "(float[N,3,8,8] x, float[1] temperature) => (float[N,5] y)", SIDE)
    adapter, x = compiled(path, "source", hold={"temperature": value}), RANDOM.standard_normal((4, 3, 8, 8), np.float32)
    assert [spec.name for spec in adapter.inputs] == ["x"]
    expected = plain(path, {"x": x, "temperature": np.array([2.0], np.float32)})["y"]
    np.testing.assert_allclose(adapter.step(x), expected, rtol=1e-5, atol=1e-6)


def test_a_held_state_has_a_row_for_each_sample(tmp_path: Path) -> None:
    path = written(tmp_path, "(float[N,3,8,8] x, float[2,N,5] state, int64 sr) => (float[N,5] y)", STATE)
    x = RANDOM.standard_normal((4, 3, 8, 8), np.float32)
    for method in ("source", "tent"):
        adapter = compiled(path, method, hold={"state": "0.5", "sr": "16000"})
    feeds = {"x": x, "state": np.full((2, 4, 5), 0.5, np.float32), "sr": np.array(16000)}
    adapter = ttac.load(tmp_path / "source.ttac")
    np.testing.assert_allclose(adapter.step(x), plain(path, feeds)["y"], rtol=1e-5, atol=1e-9)


def test_hold_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "(float[N,3,8,8] x, float[1] temperature) => (float[N,5] y)", SIDE)
    arguments = ["compile", str(path), "--method", "bn", "-o", str(tmp_path / "b.ttac")]
    assert main([*arguments, "--hold", "temperature=1"]) == 0
    for wrong, words in (
        ("temperatur=1", "the model has no input `temperatur`"),
        ("temperature=warm", "`warm` is no value"),
        ("temperature=1,2", "the value has shape [2], the input `temperature` [1]"),
        ("temperature=none.npy", "`none.npy` is no value"),
        ("x=1", "no input is left that takes samples"),
    ):
        capsys.readouterr()
        assert main([*arguments, "--hold", wrong, *(["--hold", "temperature=1"] if wrong == "x=1" else [])]) == 2
        assert words in capsys.readouterr().err
