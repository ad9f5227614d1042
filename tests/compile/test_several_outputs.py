"""A model with several outputs: the bundle returns all by name, and the loss reads one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import ttac
from tests.support.real_files import POOLED, images, plain, written
from ttac import bake
from ttac.cli import main
from ttac.errors import UnsupportedError, UsageError
from ttac.runtime.bundle import read_manifest

NAMES = ["boxes", "scores", "label"]
SIGNATURE = "(float[N,3,8,8] x) => (float[N,4] boxes, float[N,5] scores, int64[N] label)"
NODES = f"""{POOLED}
  boxes = MatMul (f, wb)
  h = MatMul (f, wf)
  scores = Softmax <axis = 1> (h)
  label = ArgMax <axis = 1, keepdims = 0> (scores)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A detector-like model: boxes first, then scores, then labels."""
    return written(tmp_path, SIGNATURE, NODES)


def compiled(model: Path, method: str, **choices: object) -> Path:
    """Compile for 4 samples beside the model."""
    folder = model.parent / f"{method}.ttac"
    ttac.compile(model, method=method, batch=4, output=folder, **choices)  # type: ignore[arg-type]
    return folder


def test_source_gives_all_outputs_of_the_file(model: Path) -> None:
    adapter, x = ttac.load(compiled(model, "source")), images(4)
    expected = plain(model, x)
    for outputs in (adapter.step(x), adapter.predict(x)):
        assert list(outputs) == NAMES
        for name in NAMES:
            assert outputs[name].dtype == expected[name].dtype
            np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["tent", "sar", "eata", "bn", "leantta", "surgeon"])
def test_methods_adapt_on_one_and_return_all(method: str, model: Path) -> None:
    choices = {} if method in ("bn", "leantta") else {"logits": "scores"}
    adapter, x = ttac.load(compiled(model, method, **choices)), images(4)
    one, x2 = adapter.step(x), images(4, seed=1)
    assert list(one) == NAMES and one["label"].tolist() == one["scores"].argmax(1).tolist()
    two, again = adapter.step(x2), ttac.load(adapter.path)
    again.step(x)
    np.testing.assert_array_equal(two["boxes"], again.step(x2)["boxes"])
    assert adapter.output.name == "scores"
    assert adapter.bundle.manifest["head"]["output"] == "scores"


def test_first_pass_outputs_survive_a_second_pass(model: Path) -> None:
    """SAR runs the forward twice; the outputs are those before the perturbation, as without a step."""
    adapter, x = ttac.load(compiled(model, "sar", logits="scores")), images(4)
    before = adapter.predict(x)
    after = adapter.step(x)
    for name in NAMES:
        np.testing.assert_array_equal(before[name], after[name])


def test_an_output_that_is_a_residual_stays(tmp_path: Path) -> None:
    """A feature map that is an output and also feeds the backward."""
    path = written(tmp_path, "(float[N,3,8,8] x) => (float[N,5] y, float[N,8,8,8] r)", f"{POOLED} y = MatMul (f, wf)")
    for method in ("sar", "tent"):
        adapter, x = ttac.load(compiled(path, method, logits="y")), images(4)
        predicted, stepped = adapter.predict(x), adapter.step(x)
        np.testing.assert_allclose(stepped["r"], predicted["r"], rtol=1e-5, atol=1e-6)


def test_an_ambiguous_loss_lists_the_outputs(model: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        compiled(model, "tent")
    assert "`boxes`" in str(refusal.value) and "--logits scores" in str(refusal.value)
    assert "`bn`" in str(refusal.value) and "`label`" not in str(refusal.value)


def test_integers_are_never_learned_from(tmp_path: Path) -> None:
    nodes = f"{POOLED} h = MatMul (f, wf) \n p = Softmax <axis = 1> (h) \n label = ArgMax <axis = 1> (h)"
    path = written(tmp_path, "(float[N,3,8,8] x) => (int64[N,1] label, float[N,5] p)", nodes)
    adapter = ttac.load(compiled(path, "tent"))
    assert adapter.output.name == "p" and list(adapter.step(images(4))) == ["label", "p"]


@pytest.mark.parametrize("method", ["source", "bn", "leantta"])
def test_a_file_of_labels_alone_needs_no_loss(method: str, tmp_path: Path) -> None:
    """A file without any output of floats: its labels come out, and a method with a loss is refused."""
    nodes = f"{POOLED} h = MatMul (f, wf) \n label = ArgMax <axis = 1, keepdims = 0> (h)"
    path, x = written(tmp_path, "(float[N,3,8,8] x) => (int64[N] label)", nodes), images(4)
    label = ttac.load(compiled(path, method)).predict(x)
    np.testing.assert_array_equal(label, plain(path, x)["label"])
    assert label.dtype == np.int64
    with pytest.raises(UnsupportedError, match="the output `label` is int64, not float32"):
        compiled(path, "tent")


def test_the_compile_says_which_output_the_loss_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = f"{POOLED} h = MatMul (f, wf) \n p = Softmax <axis = 1> (h) \n label = ArgMax <axis = 1> (h)"
    path = written(tmp_path, "(float[N,3,8,8] x) => (int64[N,1] label, float[N,5] p)", nodes)
    assert main(["compile", str(path), "--method", "tent", "--batch", "4", "-o", str(tmp_path / "b.ttac")]) == 0
    assert "the loss reads `p` (`--logits p`); all 2 outputs are returned" in capsys.readouterr().err


def test_the_session_gives_outputs_by_name(model: Path) -> None:
    session, x = ttac.InferenceSession(compiled(model, "tent", logits="scores"), adapt=False), images(4)
    assert [value.name for value in session.get_outputs()] == NAMES
    assert [value.type for value in session.get_outputs()] == ["tensor(float)", "tensor(float)", "tensor(int64)"]
    scores, boxes = session.run(["scores", "boxes"], {"x": x})
    assert (scores.shape, boxes.shape) == ((4, 5), (4, 4))
    assert [value.shape for value in session.run(None, {"x": x})] == [(4, 4), (4, 5), (4,)]


def test_run_writes_all_outputs(model: Path, tmp_path: Path) -> None:
    bundle = compiled(model, "tent", logits="scores")
    np.savez(tmp_path / "s.npz", images=images(10), labels=np.zeros(10, np.int64))
    assert main(["run", str(bundle), str(tmp_path / "s.npz"), "-o", str(tmp_path / "out.npz")]) == 0
    with np.load(tmp_path / "out.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays} == {"boxes": (10, 4), "scores": (10, 5), "label": (10,)}


def test_a_baked_model_keeps_all_outputs(model: Path, tmp_path: Path) -> None:
    bundle = compiled(model, "tent", logits="scores", settings={"lr": 0.1})
    adapter = ttac.load(bundle)
    adapter.step(images(4))
    adapter.save(tmp_path / "state.safetensors")
    bake.bake(bundle, tmp_path / "state.safetensors", tmp_path / "baked.onnx", force=True)
    assert list(plain(tmp_path / "baked.onnx", images(2))) == NAMES


def test_an_output_of_open_size_is_returned(tmp_path: Path) -> None:
    """An output whose size depends on the data, as behind NonMaxSuppression."""
    nodes = f"{POOLED} y = MatMul (f, wf) \n z = NonZero (y)"
    path = written(tmp_path, "(float[N,3,8,8] x) => (float[N,5] y, int64[2,M] z)", nodes)
    adapter, x = ttac.load(compiled(path, "bn")), images(4)
    assert adapter.outputs[1].shape == (2, "?")
    np.testing.assert_array_equal(adapter.step(x)["z"], np.nonzero(adapter.step(x)["y"]))


def test_outputs_with_foreign_operators_are_named(tmp_path: Path) -> None:
    text = f"{POOLED} y = MatMul (f, wf) \n z = com.microsoft.Inverse (y)"
    path = written(tmp_path, "(float[N,3,8,8] x) => (float[N,5] y, float[N,5] z)", text)
    model = onnx.load(path)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    lines: list[str] = []
    bundle = compiled(path, "tent", say=lines.append)
    assert any("output `z` dropped: it needs node" in line and "com.microsoft.Inverse" in line for line in lines)
    assert [entry["name"] for entry in read_manifest(bundle)["outputs"]] == ["y"]
