"""Sizes that stay open: one bundle at several sizes equals the bundles that are compiled for each size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttac
from tests.support.real_files import BODY, POOLED, images, weights, written
from tests.support.source_models import saved, source
from ttac.bundle_content import OpenSize
from ttac.cli import main
from ttac.errors import UnsupportedError, UsageError
from ttac.runtime.bundle import read_manifest
from ttac.size_trials import _least, _Trials

SIZES = ((32, 32), (24, 20), (17, 29), (32, 12), (10, 14))
CLASSES = f"{POOLED} y = MatMul (f, wf)"
MAPS = f"""{BODY}
  d = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
  u = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (d, , two)
  k = Conv <pads = [1, 1, 1, 1]> (u, w2)
  y = Mul (k, half)
"""
TOKENS = f"""{BODY}
  size = Shape (r)
  n0 = Gather <axis = 0> (size, zero)
  c0 = Gather <axis = 0> (size, one)
  target = Concat <axis = 0> (n0, c0, rest)
  t = Reshape (r, target)
  rows = Transpose <perm = [0, 2, 1]> (t)
  q = MatMul (rows, wq)
  a = MatMul (q, t)
  p = Softmax <axis = 2> (a)
  o = MatMul (p, rows)
  l = LayerNormalization <axis = -1> (o, ls, lb)
  g = ReduceMean <keepdims = 0> (l, one)
  y = MatMul (g, wf)
"""
RANDOM = np.random.default_rng(1)
MORE = {
    "two": np.array([1, 1, 2, 2], np.float32),
    "half": np.array(0.5, np.float32),
    "w2": (RANDOM.standard_normal((4, 8, 3, 3)) * 0.3).astype(np.float32),
    "zero": np.array([0]),
    "one": np.array([1]),
    "rest": np.array([-1]),
    "wq": (RANDOM.standard_normal((8, 8)) * 0.3).astype(np.float32),
    "ls": np.ones(8, np.float32),
    "lb": np.zeros(8, np.float32),
}
NETS = {
    "classes": ("(float[N,3,height,width] x) => (float[N,5] y)", CLASSES),
    "maps": ("(float[N,3,height,width] x) => (float[N,4,h,w] y)", MAPS),
    "tokens": ("(float[N,3,height,width] x) => (float[N,5] y)", TOKENS),
}


def net(name: str, folder: Path) -> Path:
    """Write one of the nets."""
    signature, nodes = NETS[name]
    words = set(nodes.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {key: array for key, array in {**weights(), **MORE}.items() if key in words}
    return saved(source(f"m {signature} {{ {nodes} }}", used, opset=18), folder)


def compiled(model: Path, method: str, name: str = "open", **choices: object) -> ttac.Adapter:
    """Compile for 4 samples beside the model, and load."""
    folder = model.parent / f"{method}-{name}.ttac"
    ttac.compile(model, method=method, batch=4, output=folder, **choices)  # type: ignore[arg-type]
    return ttac.load(folder)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("classes", "source"),
        ("classes", "tent"),
        pytest.param("classes", "sar", marks=pytest.mark.slow),
        pytest.param("classes", "leantta", marks=pytest.mark.slow),
        ("maps", "tent"),
        pytest.param("maps", "bn", marks=pytest.mark.slow),
        pytest.param("tokens", "tent", marks=pytest.mark.slow),
    ],
)
def test_one_bundle_equals_five_fixed_ones(name: str, method: str, tmp_path: Path) -> None:
    path = net(name, tmp_path)
    adapter = compiled(path, method, max_shape="3x32x32")
    step = read_manifest(adapter.path)["sizes"][0]["multiple"]
    for height, width in SIZES:
        height, width = height // step * step, width // step * step
        fixed = compiled(path, method, f"{height}x{width}", shape=(3, height, width))
        adapter.reset()
        for seed in range(3):
            x = images(4, 3, height, width, seed=seed)
            np.testing.assert_allclose(adapter.step(x), fixed.step(x), rtol=1e-5, atol=1e-5)
        for key, array in fixed._state.arrays().items():
            np.testing.assert_allclose(adapter._state.arrays()[key], array, rtol=1e-5, atol=1e-5)


def test_restored_norms_keep_their_statistics(tmp_path: Path) -> None:
    """A norm that calibration data gave a folded convolution is the same at every size."""
    nodes = "c = Conv <pads = [1, 1, 1, 1]> (x, w, b) \n r = Relu (c) \n g = GlobalAveragePool (r) \n f = Flatten (g)"
    signature = "(float[N,3,height,width] x) => (float[N,5] y)"
    path = written(tmp_path, signature, f"{nodes} \n y = MatMul (f, wf)")
    adapter = compiled(path, "bn", max_shape="3x32x32", calibration=images(32, 3, 32, 32), norms="insert")
    assert len(adapter.bundle.manifest["sites"]) == 1
    assert np.isfinite(adapter.step(images(4, 3, 20, 24))).all()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the net with a pooled map, for images of at most 3x32x32."""
    folder = tmp_path_factory.mktemp("open")
    return compiled(net("classes", folder), "tent", max_shape=(3, 32, 32)).path


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((4, 3, 40, 32), "its size `height` is 40, at most 32 fits"),
        ((4, 3, 32, 33), "its size `width` is 33, at most 32 fits"),
        ((4, 3, 0, 32), "its size `height` is 0, at most 32 fits"),
        ((4, 1, 32, 32), "the model takes [1 to 4, 3, height, width]"),
        ((5, 3, 32, 32), "has 5 samples"),
    ],
)
def test_sizes_above_the_maximum_change_nothing(bundle: Path, shape: tuple[int, ...], words: str) -> None:
    adapter = ttac.load(bundle)
    adapter.step(images(4, 3, 16, 16))
    before = {name: np.array(array) for name, array in adapter._state.arrays().items()}
    with pytest.raises(UsageError) as refusal:
        adapter.step(np.zeros(shape, np.float32))
    assert words in str(refusal.value)
    for name, array in adapter._state.arrays().items():
        np.testing.assert_array_equal(array, before[name])


def test_the_session_shows_the_open_sizes(bundle: Path) -> None:
    session = ttac.InferenceSession(bundle)
    assert session.get_inputs()[0].shape == ["N", 3, "height", "width"]
    assert session.adapter.input_shape == (3, 32, 32)
    assert session.run(None, {"x": images(2, 3, 9, 11)})[0].shape == (2, 5)


def test_run_takes_any_size(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "s.npz", images=images(6, 3, 20, 28))
    assert main(["run", str(bundle), str(tmp_path / "s.npz")]) == 0
    np.save(tmp_path / "l.npy", images(6, 3, 40, 28))
    assert main(["run", str(bundle), str(tmp_path / "l.npy")]) == 2
    assert "at most 32 fits" in capsys.readouterr().err


def test_options_that_fix_a_size(tmp_path: Path) -> None:
    path = net("classes", tmp_path)
    for choices, words in (
        ({"shape": "3x8x8"}, "`--shape` needs a fixed size"),
        ({"method": "surgeon"}, "`surgeon` keeps parts of values in codec `blocks`"),
    ):
        with pytest.raises(UsageError, match=words):
            ttac.compile(path, max_shape="3x32x32", **choices)  # type: ignore[arg-type]
    closed = written(tmp_path, "(float[N,3,8,8] x) => (float[N,5] y)", CLASSES)
    with pytest.raises(UsageError, match="the file leaves no size open"):
        ttac.compile(closed, method="source", max_shape="3x8x8", dry_run=True)


def test_a_table_binds_the_size(tmp_path: Path) -> None:
    more = {"table": RANDOM.standard_normal((1, 1, 32, 32)).astype(np.float32)}
    nodes = f"x1 = Add (x, table) \n {CLASSES.replace('(x, w)', '(x1, w)')}"
    path = written(tmp_path, "(float[N,3,height,width] x) => (float[N,5] y)", nodes, more)
    with pytest.raises(UnsupportedError, match="Add"):
        ttac.compile(path, method="source", max_shape="3x32x32", dry_run=True)


BOUND = f"""{BODY}
  rows = ReduceMean <keepdims = 0> (r, three)
  f = Reshape (rows, flat)
  y = MatMul (f, tall)
"""
"""A net whose last layer takes 16 rows of 8 channels, and any width."""


@pytest.mark.parametrize("method", ["bn", "tent"])
def test_a_bound_size_stays_and_the_others_stay_open(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"m (float[N,3,height,width] x) => (float[N,5] y) {{ {BOUND} }}"
    tall = (RANDOM.standard_normal((128, 5)) * 0.3).astype(np.float32)
    known = {name: array for name, array in weights().items() if name not in ("wf", "wb")}
    path = saved(source(text, {**known, "three": np.array([3]), "flat": np.array([0, 128]), "tall": tall}), tmp_path)
    bundle = tmp_path / "b.ttac"
    command = ["compile", str(path), "--method", method, "--batch", "4", "--max-shape", "3x16x32", "-o", str(bundle)]
    assert main(command) == 0
    assert "`height` at 16 stays fixed: " in capsys.readouterr().err
    assert [size["name"] for size in read_manifest(bundle)["sizes"]] == ["width"]
    adapter = ttac.load(bundle)
    for width in (32, 24, 17):
        own = tmp_path / f"{width}.ttac"
        ttac.compile(path, method=method, batch=4, shape=(3, 16, width), output=own)
        x = images(4, 3, 16, width)
        adapter.reset()
        np.testing.assert_allclose(adapter.step(x), ttac.load(own).step(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError):
        adapter.step(images(4, 3, 12, 32))


NARROW = """
  c = Conv <strides = [2, 2]> (x, wide)
  n = BatchNormalization (c, s, b, m, v)
  r = Relu (n)
  k = Conv (r, w2)
  g = GlobalAveragePool (k)
  y = Flatten (g)
"""
"""A net that takes images from 9x9: kernels of 5, with a stride of 2, and of 3, without padding."""


def test_a_bundle_states_the_smallest_size(tmp_path: Path) -> None:
    wide = (RANDOM.standard_normal((8, 3, 5, 5)) * 0.3).astype(np.float32)
    arrays = {"wide": wide, "w2": MORE["w2"], **{name: weights()[name] for name in ("s", "b", "m", "v")}}
    path = saved(source(f"m (float[N,3,height,width] x) => (float[N,4] y) {{ {NARROW} }}", arrays), tmp_path)
    adapter = compiled(path, "bn", max_shape="3x48x40")
    sizes = {size["name"]: size for size in read_manifest(adapter.path)["sizes"]}
    assert [(sizes[name]["smallest"], sizes[name]["multiple"]) for name in ("height", "width")] == [(9, 1), (9, 1)]
    fixed = compiled(path, "bn", "9x9", shape=(3, 9, 9))
    x = images(4, 3, 9, 9)
    np.testing.assert_allclose(adapter.step(x), fixed.step(x), rtol=1e-5, atol=1e-5)
    before = {name: np.array(array) for name, array in adapter._state.arrays().items()}
    with pytest.raises(UsageError) as refusal:
        adapter.step(images(4, 3, 20, 8))
    assert "its size `width` is 8, the smallest that works is 9" in str(refusal.value)
    for name, array in adapter._state.arrays().items():
        np.testing.assert_array_equal(array, before[name])


def trials_of(child: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> _Trials:
    """Trials whose child process runs these statements."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    start = [sys.executable, "-c", child]
    monkeypatch.setattr("ttac.size_trials.start_module", lambda *_: subprocess.Popen(start, **pipes))
    return _Trials(folder, folder)


def test_a_process_that_dies_is_a_size_that_does_not_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Engines divide by an empty axis, and the processor ends them."""
    child = """
import json, os, signal, sys
for line in sys.stdin:
    if json.loads(line)["width"] < 7:
        os.kill(os.getpid(), signal.SIGFPE)
    print("yes", flush=True)
"""
    trials = trials_of(child, monkeypatch, tmp_path)
    try:
        assert [trials.works({"width": width}) for width in (9, 6, 7, 1, 30)] == [True, False, True, False, True]
        assert _least(trials, {"width": 30}, OpenSize("width", 40, 1, 30)) == 7
    finally:
        trials.close()


def test_a_trial_without_an_end_is_a_size_that_does_not_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ttac.size_trials.SECONDS", 0.2)
    trials = trials_of("import time; time.sleep(3600)", monkeypatch, tmp_path)
    try:
        assert not trials.works({"width": 9})
    finally:
        trials.close()
