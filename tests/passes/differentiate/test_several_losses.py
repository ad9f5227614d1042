"""Heads that `--head` names, masks of padding, backgrounds, and losses on several outputs: values and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttac
from tests.support.head_cases import CONV, POOL, START, written
from tests.support.source_models import saved, source
from tests.support.tiny_bundles import read
from tests.support.whole_models import compiled, refused, samples, state_of
from ttac.errors import UnsupportedError, UsageError
from ttac.learned_outputs import learned_outputs

TWO = f"""net (float[batch,3,8,8] x) => (float[batch,5] a, float[batch,3] s, float[batch,2,8,8] m) {{
  {START} {POOL} a = Gemm (f, "wa") z = Gemm (f, "wb") s = Softmax <axis = 1> (z) m = Conv (r, "wm") }}"""
TOKENS = """net (float[batch,3,8,8] x, int64[batch,64] MASK) => (float[batch,64,6] y) {
  START s = Reshape <allowzero = 0> (r, "shape") t = Transpose <perm = [0,2,1]> (s) z = MatMul (t, "w")
  k = Cast <to = 1> (MASK) u = Unsqueeze (k, "last") o = Mul (u, "tiny") y = Add (z, o) }"""
SHIFT = 0.02


def entropies(logits: np.ndarray, axis: int) -> np.ndarray:
    p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis, keepdims=True)
    return np.asarray(-(p * np.log(p)).sum(axis))


def shares(p: np.ndarray) -> np.ndarray:
    return np.asarray(-(p.astype(float) * np.log(p)).sum(1))


@pytest.fixture
def several(tmp_path: Path) -> Path:
    random = np.random.default_rng(2)
    shapes: dict[str, Any] = {**CONV, "wa": (4, 5), "wb": (4, 3), "wm": (2, 4, 1, 1)}
    drawn = {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return saved(source(TWO, {n: np.abs(a) + 0.5 if n.startswith("bn") else a for n, a in drawn.items()}), tmp_path)


def learned(path: Path, folder: Path, **choices: Any) -> tuple[ttac.Adapter, dict[str, np.ndarray], dict[str, Any]]:
    """Compile for 4 samples with plain gradient steps, take one, and return adapter, outputs and manifest."""
    settings = {"optimizer": "sgd", "momentum": 0.0, "lr": 1.0, "guard": "off"}
    bundle = compiled(path, folder, batch=4, settings=settings, **choices)
    adapter = ttac.load(bundle, threads=1)
    return adapter, adapter.step(samples((3, 8, 8), 4)), read(bundle)


def test_the_loss_is_the_weighted_sum_over_outputs(several: Path, tmp_path: Path) -> None:
    """The value by numpy; the gradient by the compile's finite differences and as a sum of those of single outputs."""
    adapter, y, manifest = learned(several, tmp_path, method="tent", logits="a=1,s=0.5,m=2")
    assert manifest["head"]["output"] == "a" and manifest["verified"]["derivative"] < 5e-3
    expected = entropies(y["a"], 1).mean() + 0.5 * shares(y["s"]).mean() + 2 * entropies(y["m"], 1).mean()
    assert adapter.stats["entropy"] == pytest.approx(expected, rel=1e-5)
    moved = {}
    for name in "asm":
        (folder := tmp_path / name).mkdir()
        moved[name] = state_of(learned(several, folder, method="tent", logits=name)[0])
    whole = state_of(adapter)
    for key in ("bn.scale", "bn.bias"):
        start = {"bn.scale": "bn.weight", "bn.bias": "bn.bias"}[key]
        initial = next(a for n, a in weights_of(several).items() if n == start)
        steps = {name: moved[name][key] - initial for name in "asm"}
        np.testing.assert_allclose(
            whole[key] - initial, steps["a"] + 0.5 * steps["s"] + 2 * steps["m"], rtol=1e-3, atol=1e-6
        )


def weights_of(path: Path) -> dict[str, np.ndarray]:
    import onnx

    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def test_methods_that_weigh_samples_take_outputs_of_samples(several: Path, tmp_path: Path) -> None:
    bundle = compiled(several, tmp_path, batch=4, method="sar", logits="a=1,s=3", settings={"margin": 1.1})
    adapter = ttac.load(bundle, threads=1)
    y = adapter.step(samples((3, 8, 8), 4))
    expected = (entropies(y["a"], 1) + 3 * shares(y["s"])) / 4
    assert adapter.stats["entropy"] == pytest.approx(expected.mean(), rel=1e-4)
    assert "other predictions: [N], [N, 8, 8]" in refused(UnsupportedError, several, method="sar", logits="a,m")
    assert "reads one output" in refused(UnsupportedError, several, method="shot-im", logits="a,s")


@pytest.mark.parametrize("text", ["a=0", "a=x", "a,a", "a,", "=1"])
def test_a_weight_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="names no output with a weight"):
        learned_outputs(text)


def test_a_further_output_that_does_not_exist(several: Path) -> None:
    assert "no output `c`" in refused(UsageError, several, method="tent", logits="a,c")


def token_model(mask: str, folder: Path) -> Path:
    """Write a model with logits [N, 64, 6] of tokens, and a mask [N, 64] of that name."""
    random = np.random.default_rng(3)
    shapes: dict[str, Any] = {**CONV, "w": (4, 6)}
    drawn = {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    drawn = {n: np.abs(a) + 0.5 if n.startswith("bn") else a for n, a in drawn.items()}
    more = {"shape": np.array([0, 4, 64]), "last": np.array([2]), "tiny": np.array(SHIFT, np.float32)}
    return saved(source(TOKENS.replace("MASK", mask).replace("START", START), {**drawn, **more}), folder)


@pytest.mark.parametrize("name", ["attention_mask", "key_padding_mask"])
@pytest.mark.parametrize("method", ["tent", "eata"])
def test_padding_does_not_count(name: str, method: str, tmp_path: Path) -> None:
    """A mask counts where it is true, one of padding where it is false."""
    path = token_model(name, tmp_path)
    bundle = compiled(path, tmp_path, batch=4, method=method)
    assert read(bundle)["verified"]["derivative"] < 5e-3
    adapter = ttac.load(bundle, threads=1)
    mask = (np.arange(64) < np.array([[60], [40], [10], [1]])).astype(np.int64)
    y = adapter.step({"x": samples((3, 8, 8), 4), name: mask})
    counted = mask == (0 if "padding" in name else 1)
    assert adapter.stats["entropy"] == pytest.approx(entropies(y, 2)[counted].mean(), rel=1e-4)
    (folder := tmp_path / "dense").mkdir()
    every = ttac.load(compiled(path, folder, batch=4, method="tent", head="dense"), threads=1)
    y = every.step({"x": samples((3, 8, 8), 4), name: mask})
    assert every.stats["entropy"] == pytest.approx(entropies(y, 2).mean(), rel=1e-4)


def test_tokens_need_a_mask(tmp_path: Path) -> None:
    path = written('y = Conv (r, "w")', {"w": (6, 4, 1, 1)}, "6,8,8", tmp_path)
    assert "with `mask` in its name" in refused(UnsupportedError, path, head="tokens")


@pytest.mark.parametrize("head", ["auto", "multilabel"])
def test_several_answers_of_a_sigmoid(head: str, tmp_path: Path) -> None:
    path = written(f'{POOL} z = Gemm (f, "w") y = Sigmoid (z)', {"w": (4, 3)}, "3", tmp_path)
    bundle = compiled(path, tmp_path, batch=4, head=head)
    assert read(bundle)["head"]["kind"] == "binary"
    adapter = ttac.load(bundle, threads=1)
    p = adapter.step(samples((3, 8, 8), 4)).astype(float)
    expected = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    assert adapter.stats["entropy"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("head", ["embedding", "regression"])
def test_outputs_without_predictions(head: str, tmp_path: Path) -> None:
    path = written(f'{POOL} y = Gemm (f, "w")', {"w": (4, 5)}, "5", tmp_path)
    assert f"a head `{head}` has none" in refused(UnsupportedError, path, head=head, method="tent")
    assert read(compiled(path, tmp_path, batch=4, head=head, method="bn"))["head"] is None


@pytest.mark.parametrize(("background", "ignored"), [("first", 0), ("last", 5), ("none", None)])
def test_a_stated_background(background: str, ignored: int | None, tmp_path: Path) -> None:
    """DETR gives logits [N, boxes, classes] with the background last, RetinaNet independent ones without any."""
    reshaped = 's = Reshape <allowzero = 0> (r, "shape") t = Transpose <perm = [0,2,1]> (s) y = MatMul (t, "w")'
    path = written(reshaped, {"w": (4, 6), "shape": np.array([0, 4, 64])}, "64,6", tmp_path)
    bundle = compiled(path, tmp_path, batch=4, head="detection", background=background)
    assert read(bundle)["head"]["ignored"] == ignored
    adapter = ttac.load(bundle, threads=1)
    y = adapter.step(samples((3, 8, 8), 4))
    if ignored is not None:
        assert adapter.stats["entropy"] == pytest.approx(
            entropies(y, 2)[y.argmax(2) != ignored].mean(), rel=1e-4
        )  # fmt: skip
    assert "has no such background" in refused(UsageError, path, head="dense", background="first")
