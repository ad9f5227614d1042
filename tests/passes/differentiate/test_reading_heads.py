"""The heads that the compiler recognises, and the outputs that it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.conftest import Run
from tests.support.head_cases import CONV, HEADS, POOL, SHAPES, START, entropy_of, written
from tests.support.source_models import Weights, saved, source
from tests.support.tiny_bundles import read
from tests.support.whole_models import compiled, normal, refused, samples, state_of
from ttac.errors import UnsupportedError, UsageError
from ttac.inspection import inspect_model
from ttac.passes.differentiate.heads import decide_head


@pytest.mark.parametrize("name", list(HEADS))
def test_an_output_is_read(name: str, tmp_path: Path) -> None:
    end, weights, told = HEADS[name]
    path = written(end, weights, SHAPES[name], tmp_path)
    assert str(decide_head(normal(path).graph.outputs[0])) == told


@pytest.mark.parametrize("name", list(HEADS))
def test_the_entropy_is_that_of_the_predictions(name: str, tmp_path: Path) -> None:
    """The reported entropy against the outputs, in float64; that the gradient is its derivative, the compile verified."""
    end, weights, _ = HEADS[name]
    folder = compiled(written(end, weights, SHAPES[name], tmp_path), tmp_path, batch=4, settings={"lr": 0.01})
    manifest = read(folder)
    assert manifest["verified"]["derivative"] is not None
    adapter = ttac.load(folder, threads=1)
    before = state_of(adapter)
    y = adapter.step(samples((3, 8, 8), 4))
    assert adapter.stats["entropy"] == pytest.approx(entropy_of(y, manifest["head"]), rel=1e-4, abs=1e-6)
    after = state_of(adapter)
    assert any(np.abs(after[key] - before[key]).max() > 1e-3 for key in before if key.endswith("scale"))


@pytest.mark.parametrize("end", ["", "s = Sigmoid (z) y = Identity (s)"])
def test_several_answers_are_a_choice(end: str, tmp_path: Path) -> None:
    """Multi-label outputs are classes unless a Sigmoid or the user says otherwise."""
    text = f'{POOL} z = Gemm (f, "w") {end}' if end else f'{POOL} y = Gemm (f, "w")'
    path = written(text, {"w": (4, 3)}, "3", tmp_path)
    folder = compiled(path, tmp_path, batch=4, head="binary", method="eata", settings={"margin": 1.1, "redundancy": 1})
    head = read(folder)["head"]
    assert head == {"output": "y", "kind": "binary", "axis": 1, "values": "probabilities" if end else "logits"}
    adapter = ttac.load(folder, threads=1)
    y = adapter.step(samples((3, 8, 8), 4))
    assert adapter.stats["entropy"] == pytest.approx(entropy_of(y, head), rel=1e-5)
    assert adapter.stats["selected"] == 4
    p = y if end else 1 / (1 + np.exp(-y.astype(np.float64)))
    np.testing.assert_allclose(
        state_of(adapter)["probabilities.average"], np.concatenate([1 - p, p], 1).mean(0), atol=1e-6
    )
    assert read(compiled(path, tmp_path, batch=4))["head"]["kind"] == ("binary" if end else "classes")


UNREAD: dict[str, tuple[str, Weights, str, str]] = {
    "ambiguous": (
        's = Reshape <allowzero = 0> (r, "shape") y = Concat <axis = 2> (s, s)', {"shape": np.array([0, 4, 64])},
        "4,128", "the axis of the classes is unclear",
    ),
    "choice": (
        f'{POOL} z = Gemm (f, "w") a = ArgMax <axis = 1, keepdims = 0> (z) y = Cast <to = 1> (a)', {"w": (4, 5)}, "",
        "the choice of `ArgMax`",
    ),
    "part": (
        f'{POOL} z = Gemm (f, "w") s = Softmax <axis = 1> (z) y = Gather <axis = 1> (s, "one")',
        {"w": (4, 2), "one": np.array([1])}, "1", "`Gather` behind the last Softmax",
    ),
    "upsampled": (
        'z = Conv (r, "w") s = Softmax <axis = 1> (z) y = Resize <mode = "linear"> (s, , "scales")',
        {"w": (6, 4, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32)}, "6,16,16", "`Resize` behind the last Softmax",
    ),
    "one class": (
        f'{POOL} z = Gemm (f, "w") y = Softmax <axis = 1> (z)', {"w": (4, 1)}, "1", "over a single class",
    ),
    "answers of tokens": (
        's = Reshape <allowzero = 0> (r, "shape") t = Transpose <perm = [0,2,1]> (s) z = MatMul (t, "w") y = Sigmoid (z)',
        {"w": (4, 6), "shape": np.array([0, 4, 64])}, "64,6", "ends in a Sigmoid",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(UNREAD))
def test_an_output_that_is_no_prediction(name: str, tmp_path: Path) -> None:
    """A method with a loss refuses the output; other methods adapt, and report no head."""
    end, weights, shape, reason = UNREAD[name]
    path = written(end, weights, shape, tmp_path)
    message = refused(UnsupportedError, path)
    assert reason in message and "output `y`" in message
    folder = compiled(path, tmp_path, method="bn", batch=4)
    assert read(folder)["head"] is None
    assert len(ttac.load(folder, threads=1).step(samples((3, 8, 8), 2))) == 2
    report = inspect_model(path)
    assert reason in report["head"]
    assert {row["method"]: row["fits"] for row in report["methods"]}["tent"] == "no"


def test_numbers_of_classes_are_refused(tmp_path: Path) -> None:
    text = f"""net (float[batch,3,8,8] x) => (int64[batch] y) {{
      {START} {POOL} z = Gemm (f, "w") y = ArgMax <axis = 1, keepdims = 0> (z) }}"""
    assert "`ArgMax` gives the class only" in refused(
        UnsupportedError, saved(source(text, {**CONV, "w": (4, 5)}), tmp_path)
    )


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("classes", "dense", "has 2 axes, but a head `dense`"),
        ("softmax", "binary", "ends in a Softmax, but a head `binary`"),
        ("one answer", "classes", "has 2 axes, but a head `classes`"),
        ("sigmoid", "classes", "ends in a Sigmoid, but a head `classes`"),
        ("dense", "classes", "has 4 axes, but a head `classes`"),
        ("dense softmax", "binary", "has 4 axes and ends in a Softmax"),
    ],
)
@pytest.mark.parametrize("method", ["tent", "source"])
def test_a_head_that_contradicts_the_file(name: str, asked: str, said: str, method: str, tmp_path: Path) -> None:
    end, weights, _ = HEADS[name]
    path = written(end, weights, SHAPES[name], tmp_path)
    with pytest.raises(UnsupportedError) as caught:
        ttac.compile(path, head=asked, method=method)
    assert (
        said in caught.value.problem and f"`--head {asked}`" in caught.value.where and "`--head " in caught.value.hint
    )
    assert caught.value.exit_code == 3 and [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_head_that_does_not_exist(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`depth` is no choice"):
        ttac.compile(tmp_path / "none.onnx", head="depth")
    seen = run("compile", "none.onnx", "--head", "dence")
    assert seen.code == 2 and "`dence` is no choice" in seen.err and "`dense`" in seen.err


def test_a_chosen_axis(tmp_path: Path) -> None:
    """`--head dense` takes the second axis where nothing tells."""
    end, weights, shape, _ = UNREAD["ambiguous"]
    folder = compiled(written(end, weights, shape, tmp_path), tmp_path, batch=4, head="dense")
    assert read(folder)["head"] == {"output": "y", "kind": "dense", "axis": 1, "values": "logits"}
