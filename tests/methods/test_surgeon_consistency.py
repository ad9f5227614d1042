"""`surgeon` with `cr`: parity with one differentiated loss in PyTorch, reproducible draws, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import ttac
from tests.support import head_cases as heads
from tests.support.consistency_case import PROBED, RANGE, SETTINGS, STEPS, golden, inputs
from tests.support.surgeon_case import BATCH, model
from tests.support.tiny_bundles import read
from tests.support.whole_models import MODELS, compiled, refused, samples, spelled, state_of
from ttac.errors import UnsupportedError, UsageError, VerificationError
from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.losses import surprises
from ttac.passes.differentiate.reverse_walk import RULES, Rule
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import run

SEED = "augmentation.seed"


def bundle(folder: Path, **settings: Any) -> Path:
    return compiled(model("batch"), folder, method="surgeon", batch=BATCH, norms="keep", settings=settings)


def adapter(folder: Path, run: str = "plain", **settings: Any) -> ttac.Adapter:
    return ttac.load(bundle(folder, **{**SETTINGS[run], **settings}), threads=1)


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", list(SETTINGS))
def test_steps_equal_pytorch(run: str, tmp_path: Path) -> None:
    """Logits of every step and parameters after the last within 1e-4."""
    subject, expected = adapter(tmp_path, run), golden(run)
    for x, logits in zip(inputs(), expected["logits"], strict=True):
        np.testing.assert_allclose(subject.step(x), logits, atol=1e-4, rtol=0)
    assert subject.stats["rejected"] == 0 and subject.stats["steps"] == STEPS
    state = state_of(subject)
    after = {name.removeprefix("after/"): value for name, value in expected.items() if name.startswith("after/")}
    assert set(after) == {name for name in state if name.endswith((".scale", ".bias"))}
    for name, value in after.items():
        np.testing.assert_allclose(state[name], value, atol=1e-4, rtol=0)


@pytest.mark.parametrize("run", ["plain", "strong"])
def test_the_consistency_is_seen_in_the_numbers(run: str, tmp_path: Path) -> None:
    """Without it, the last logits are off by far more than the parity allows."""
    subject = adapter(tmp_path, run, cr=False)
    found = [subject.step(x) for x in inputs()]
    assert np.abs(found[-1] - golden(run)["logits"][-1]).max() > 1e-3


def test_without_the_option_nothing_is_different(tmp_path: Path) -> None:
    folder = bundle(tmp_path, select="topk")
    files = {path.name for path in folder.glob("*.onnx")}
    assert not files & {"augment.onnx", "probe.onnx", "hold.onnx", "both.onnx", "target.onnx"}
    assert "uniform.onnx" in files and SEED not in state_of(ttac.load(folder, threads=1))
    words = read(folder)["programs"]["step"]
    assert all("feed" not in word for word in words) and [word for word in words if "when" in word]


def test_the_weight_follows_from_the_classes(tmp_path: Path) -> None:
    settings = read(bundle(tmp_path, **PROBED))["method"]["settings"]
    assert settings["cr_weight"] == pytest.approx(0.06)
    settings = read(bundle(tmp_path, **PROBED, cr_weight=0.5))["method"]["settings"]
    assert settings["cr_weight"] == 0.5


def test_what_is_reported(tmp_path: Path) -> None:
    """The mean CE(p, q), at least the entropy of p in the mean; and how much of the batch is outside the range."""
    subject = adapter(tmp_path)
    subject.step(inputs()[0])
    stats = subject.stats
    assert stats["outside"] == 0 and stats["selected"] == BATCH and stats["entropy"] < stats["consistency"] < 5
    far = inputs()[0].copy()
    far[: BATCH // 4] += 100
    subject.step(far)
    assert subject.stats["outside"] == 0.25 and subject.stats["rejected"] == 0


def test_all_samples_agree_also_where_none_is_certain(tmp_path: Path) -> None:
    """With CSS, a batch of uncertain samples still learns to agree."""
    subject = adapter(tmp_path, "certain", margin=0.0)
    before = state_of(subject)
    subject.step(inputs()[0])
    after = state_of(subject)
    assert subject.stats["selected"] == 0 and subject.stats["rejected"] == 0
    assert any(not np.array_equal(after[name], before[name]) for name in after if name.endswith(".scale"))


def test_binary_answers_agree(tmp_path: Path) -> None:
    """The mean over the answers; the compile verifies the derivative."""
    settings = {"cr": True, "black": "-4", "white": "4", "lr": 1e-2}
    folder = compiled(heads.model("binary"), tmp_path, method="surgeon", batch=8, settings=settings)
    subject = ttac.load(folder, threads=1)
    for x in heads.inputs(0)["x"]:
        subject.step(x)
    assert subject.stats["rejected"] == 0 and 0 < subject.stats["entropy"] < subject.stats["consistency"]
    assert read(folder)["method"]["settings"]["cr_weight"] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("kind", "shape", "axis"), [("classes", (5, 4), 1), ("binary", (5, 3), 1), ("binary", (5,), None)]
)
def test_the_surprise_by_hand(kind: Any, shape: tuple[int, ...], axis: int | None) -> None:
    """CE(p, q) in numpy, and the entropy where both are the same."""
    z, y = np.random.RandomState(0).standard_normal((2, *shape)).astype(np.float32) * 2
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="g")
    scores, other = (ir.val(name, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape)) for name in ("z", "y"))
    graph.inputs.extend([scores, other])
    found = surprises(
        Builder(graph, "test", 18), scores, other, Head(kind=kind, shape=shape, axis=axis, values="logits")
    )
    graph.outputs.append(found)
    got = run(spelled(ir.Model(graph, ir_version=8)), {"z": z, "y": y})[str(found.name)]
    if kind == "classes":
        p, q = (np.exp(s) / np.exp(s).sum(1, keepdims=True) for s in (z, y))
        expected = -(p * np.log(q)).sum(1)
    else:
        p, q = (1 / (1 + np.exp(-s)) for s in (z, y))
        each = -(p * np.log(q) + (1 - p) * np.log(1 - q))
        expected = each if axis is None else each.mean(1)
    np.testing.assert_allclose(got, expected, atol=1e-5)


# --- the draw ---------------------------------------------------------------------------------------------------------


def trace(subject: ttac.Adapter, batches: np.ndarray) -> np.ndarray:
    return np.stack([subject.step(x) for x in batches])


def test_the_same_steps_give_the_same_numbers(tmp_path: Path) -> None:
    """In another adapter, after a reset, and after a state was saved and restored half way."""
    folder, x = bundle(tmp_path, **SETTINGS["strong"]), inputs()[:3]
    first, second = ttac.load(folder, threads=1), ttac.load(folder, threads=1)
    begun = state_of(first)[SEED]
    found = trace(first, x)
    np.testing.assert_array_equal(trace(second, x), found)
    assert not np.array_equal(state_of(first)[SEED], begun)
    first.reset()
    np.testing.assert_array_equal(state_of(first)[SEED], begun)
    np.testing.assert_array_equal(trace(first, x), found)
    second.reset()
    second.step(x[0])
    second.save(tmp_path / "state.safetensors")
    third = ttac.load(folder, threads=1)
    third.restore(tmp_path / "state.safetensors")
    np.testing.assert_array_equal(trace(third, x[1:]), found[1:])


def test_every_step_draws_anew_and_every_seed_another(tmp_path: Path) -> None:
    """With a learning rate of 0 only the draw can change how far apart the views are."""
    subject, other = adapter(tmp_path, lr=0.0), adapter(tmp_path, lr=0.0, seed=1)
    apart = []
    for each in (subject, subject, other):
        each.step(inputs()[0])
        apart.append(each.stats["consistency"])
    assert len(set(apart)) == 3


def test_a_prediction_draws_nothing(tmp_path: Path) -> None:
    subject = adapter(tmp_path)
    before = state_of(subject)[SEED]
    subject.predict(inputs()[0])
    np.testing.assert_array_equal(state_of(subject)[SEED], before)


def test_a_step_that_overflows_changes_nothing(tmp_path: Path) -> None:
    """Not the numbers to draw from either."""
    subject, before = adapter(tmp_path), state_of(adapter(tmp_path))
    x = inputs()[0].copy()
    x[5] = np.sign(x[5]) * np.float32(3e38)
    subject.step(x)
    after = state_of(subject)
    assert subject.stats["rejected"] == 1 and all(np.array_equal(after[name], before[name]) for name in before)


# --- other nets -------------------------------------------------------------------------------------------------------


def test_fewer_samples_than_planned(tmp_path: Path) -> None:
    subject = adapter(tmp_path, select="blocks")
    for n in (BATCH, 7, 2):
        assert np.isfinite(subject.step(inputs()[0][:n])).all()
    assert subject.stats["rejected"] == 0 and 0 < subject.stats["kept"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("train", ["norms", "all"])
@pytest.mark.parametrize("select", ["blocks", "threshold"])
@pytest.mark.parametrize("name", ["resnext", "densenet", "mobilenet_v3"])
def test_any_net_selection_and_training(name: str, select: str, train: str, tmp_path: Path) -> None:
    """It learns; the verification of the compile compares the derivative of the whole loss."""
    settings = {"select": select, "lr": 1e-3, "cr": True, "black": "-3", "white": "3"}
    folder = compiled(MODELS[name], tmp_path, method="surgeon", batch=16, train=train, settings=settings)
    assert read(folder)["verified"]["derivative"] < 2e-2
    subject = ttac.load(folder, threads=1)
    initial = state_of(subject)
    for n in (16, 5):
        assert np.isfinite(subject.step(samples(subject.input_shape, n))).all()
    assert subject.stats["rejected"] == 0
    after = state_of(subject)
    assert sum(not np.array_equal(after[key], initial[key]) for key in after if key.endswith(".scale")) > 1


def test_the_gradient_of_the_whole_loss_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong sign of one term is found while compiling."""
    right = RULES["LogSoftmax"].function
    monkeypatch.setitem(RULES, "LogSoftmax", Rule(lambda op, node, dz: op.Neg(right(op, node, dz)), False))
    with pytest.raises(VerificationError, match="derivative"):
        bundle(tmp_path, **SETTINGS["strong"])
    assert list(tmp_path.iterdir()) == []


# --- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["signal", "volume"])
def test_no_images(name: str, tmp_path: Path) -> None:
    told = refused(UnsupportedError, MODELS[name], method="surgeon", output=tmp_path / "b", settings={"cr": True})
    assert "only images" in told and "leave `cr` out" in told


def test_a_range_that_the_calibration_data_leaves(tmp_path: Path) -> None:
    x = inputs()[0]
    choices = {"method": "surgeon", "output": tmp_path / "b", "calibration": x, "norms": "keep"}
    told = refused(UsageError, model("batch"), settings={"cr": True}, **choices)
    assert f"{x.min():.4g}" in told and "black" in told
    folder = bundle(tmp_path, cr=True, **RANGE)
    assert read(folder)["method"]["settings"]["white"] == RANGE["white"]


def test_answers_for_each_position(tmp_path: Path) -> None:
    choices = {"method": "surgeon", "output": tmp_path / "b", "settings": {"cr": True}}
    assert "moves positions" in refused(UnsupportedError, heads.model("batch"), **choices)


@pytest.mark.parametrize(
    "settings", [{"cr_weight": -1}, {"white": "red"}, {"black": "2"}, {"seed": -1}, {"cr": "maybe"}], ids=str
)
def test_settings_that_are_none(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        bundle(tmp_path, **{"cr": True, **settings})
    assert list(tmp_path.iterdir()) == []
