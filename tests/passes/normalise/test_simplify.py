"""The child process that runs onnxsim: its permissions, and the cases where its result is discarded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.source_models import Weights, listing, norm, run, saved, source
from ttac.passes.graph.keys import LAYER
from ttac.passes.load.model_file import REFERENCE, load
from ttac.passes.normalise import simplify as simplify_room
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.normalise.simplify import damage, simplify, worthwhile


def samples(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


NORMS = """
net (float[N,3,8,8] x) => (float[N,4,8,8] y) {
  kernel = Mul ("conv2.weight", "conv2.gain")
  before = BatchNormalization (x, "norm0.weight", "norm0.bias", "norm0.running_mean", "norm0.running_var")
  a = Conv <pads = [1,1,1,1]> (before, "conv1.weight")
  b = BatchNormalization (a, "norm1.weight", "norm1.bias", "norm1.running_mean", "norm1.running_var")
  c = Conv <pads = [1,1,1,1]> (b, kernel, "conv2.bias")
  d = BatchNormalization (c, "norm2.weight", "norm2.bias", "norm2.running_mean", "norm2.running_var")
  padded = Pad (d, pads)
  e = Conv (padded, "conv1.turned")
  y = BatchNormalization (e, ones, zeros, zeros, ones)
}
"""
NORMS_WEIGHTS: Weights = {
    **norm("norm0", 3), **norm("norm1", 4), **norm("norm2", 4),
    "conv1.weight": (4, 3, 3, 3), "conv1.turned": (4, 4, 3, 3),
    "conv2.weight": (4, 4, 3, 3), "conv2.gain": (4, 1, 1, 1), "conv2.bias": (4,),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "ones": np.ones(4, np.float32), "zeros": np.zeros(4, np.float32),
}  # fmt: skip


def test_the_simplifier_folds_weights_and_keeps_norms(tmp_path: Path) -> None:
    """One run of the child: norms before a Conv, behind one with a bias and without, and one that does nothing."""
    lines: list[str] = []
    loaded = load(saved(source(NORMS, NORMS_WEIGHTS), tmp_path))
    assert worthwhile(loaded)
    model = simplify(loaded, lines.append)
    assert not lines
    kinds = [node.op_type for node in model.graph]
    assert kinds == [
        "BatchNormalization",
        "Conv",
        "BatchNormalization",
        "Conv",
        "BatchNormalization",
        "Conv",
        "BatchNormalization",
    ]
    assert model.graph.inputs[0].shape == ir.Shape(["N", 3, 8, 8])
    assert [node.metadata_props[LAYER] for node in model.graph][:3] == ["norm0", "conv1", "norm1"]
    assert REFERENCE in model.meta
    x = samples(3, 3, 8, 8)
    np.testing.assert_allclose(run(model, x), run(loaded, x), rtol=1e-4, atol=1e-4)


def test_branches_on_constants_are_taken(tmp_path: Path) -> None:
    text = """
    net (float[N,4] x) => (float[N,4] y) {
      y = If (yes) <
        then_branch = g1 () => (float[N,4] a) { a = Relu (x) },
        else_branch = g2 () => (float[N,4] b) { b = Neg (x) }
      >
    }"""
    model = normalise(load(saved(source(text, {"yes": np.array(True)}), tmp_path)))
    assert listing(model) == ["y [N,4] = Relu (x)"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -SEGV $$", "onnxsim died of signal 11"),
        ("echo went wrong >&2; exit 3", "onnxsim failed: went wrong"),
        ("exit 0", "onnxsim failed: no message"),
        ("exec sleep 10", "onnxsim took longer than 0.2 s"),
    ],
)
def test_a_crash_of_the_simplifier_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    lines: list[str] = []
    loaded = load(saved(source(NORMS, NORMS_WEIGHTS), tmp_path))
    assert simplify(loaded, lines.append, seconds=0.2 if "sleep" in script else 30) is loaded
    assert lines == [f"not simplified: {message}"]


def test_a_missing_interpreter_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    lines: list[str] = []
    assert simplify(load(saved(source(NORMS, NORMS_WEIGHTS), tmp_path)), lines.append) is not None
    assert lines[0].startswith("not simplified: onnxsim could not be started")


def test_simplifications_that_do_damage_are_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(saved(source(), tmp_path))
    without = loaded.clone()
    bn = without.graph[1]
    bn.outputs[0].replace_all_uses_with(bn.inputs[0])  # type: ignore[arg-type]
    without.graph.remove(bn, safe=True)
    assert damage(loaded, without) == "removed norms: 1 BatchNormalization"
    assert damage(loaded, loaded) == ""
    other = loaded.clone()
    other.graph.inputs[0].name = "image"
    assert damage(loaded, other) == "changed the inputs or outputs"
    inflated = loaded.clone()
    monkeypatch.setattr(simplify_room, "ALLOWANCE_BYTES", 0)
    value = ir.val("large", const_value=ir.tensor(np.zeros(10_000, np.float32)))
    inflated.graph.register_initializer(value)
    assert damage(loaded, inflated).startswith("made the constants grow from")


def test_the_child_asks_for_no_torch() -> None:
    code = "import sys, ttac.passes.normalise.simplify_child; print([m for m in ('torch', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_model_without_anything_to_fold_needs_no_child(tmp_path: Path) -> None:
    assert not worthwhile(load(saved(source(), tmp_path)))
