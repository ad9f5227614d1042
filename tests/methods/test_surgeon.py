"""SURGEON and DropIT: parity with a re-statement in PyTorch, the importance of the probe, and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import ttac
from tests.conftest import Run
from tests.support.surgeon_case import BATCH, KINDS, SETTINGS, STEPS, golden, inputs, method, model
from tests.support.whole_models import MODELS, Arrays, compiled, samples, state_of
from ttac.errors import UsageError
from ttac.passes.plan import keep_ratios as sparsity
from ttac.passes.plan.decisions import Decision, keep_as
from ttac.runtime.state_files import write_state


@pytest.fixture
def whole_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep values that no norm reads dense instead of int8: the inputs of attention."""

    def exact(value: Any, how: str, *given: Any) -> Decision:
        return keep_as(value, "dense" if how == "int8" else how, *given)

    monkeypatch.setattr(sparsity, "keep_as", exact)


def bundle(kind: str, run: str, folder: Path, **settings: Any) -> Path:
    choices = {**SETTINGS[run], **settings}
    return compiled(model(kind), folder, method=method(run), batch=BATCH, norms="keep", settings=choices)


def adapter(kind: str, run: str, folder: Path, **settings: Any) -> ttac.Adapter:
    return ttac.load(bundle(kind, run, folder, **settings), threads=1)


def keep_ratios(adapter: ttac.Adapter) -> dict[str, float]:
    """The keep ratio of each norm in the last step."""
    stats = adapter.stats
    return {name.removeprefix("kept.").removesuffix(".scale"): stats[name] for name in stats if name[:5] == "kept."}


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", list(SETTINGS))
@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_pytorch(kind: str, run: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Logits of every step and parameters after the last, and the same keep ratio of every layer.

    Adam enlarges rounding errors: 1.7e-4 on a processor with AVX2 only.
    """
    if kind == "layer":
        request.getfixturevalue("whole_otherwise")
    subject, expected = adapter(kind, run, tmp_path), golden(kind, run)
    for step, x in enumerate(inputs()):
        np.testing.assert_allclose(subject.step(x), expected["logits"][step], atol=3e-4, rtol=0)
        for name, ratio in keep_ratios(subject).items():
            assert ratio == pytest.approx(expected[f"shares/{name}"][step], abs=1e-4)
    assert subject.stats["rejected"] == 0 and subject.stats["steps"] == STEPS
    assert (len(keep_ratios(subject)) > 0) == (method(run) == "surgeon")
    state = state_of(subject)
    after = {name.removeprefix("after/"): value for name, value in expected.items() if name.startswith("after/")}
    assert set(after) == {name for name in state if name.endswith((".scale", ".bias"))}
    for name, value in after.items():
        np.testing.assert_allclose(state[name], value, atol=1e-4, rtol=0)


def test_the_kept_share_of_all_is_that_of_the_layers(tmp_path: Path) -> None:
    subject = adapter("batch", "surgeon", tmp_path)
    subject.step(inputs()[0])
    sizes = {"1": 2048, "3.norm1": 2048, "3.norm2": 2048, "3.skip.1": 2048}
    ratios = keep_ratios(subject)
    weights = np.array([sizes.get(name, 1024) for name in ratios], float)
    assert subject.stats["kept"] == pytest.approx((weights / weights.sum() * list(ratios.values())).sum(), rel=1e-5)
    assert max(ratios.values()) == pytest.approx(1.0) and min(ratios.values()) > 0


# --- the probe --------------------------------------------------------------------------------------------------------


def test_a_step_begins_with_everything_kept(tmp_path: Path) -> None:
    """The keep ratios follow from the batch alone: the same batch gives the same ratios, in any order of batches."""
    subject = adapter("batch", "surgeon", tmp_path, lr=0.0)
    first, other = inputs()[:2]
    subject.step(first)
    ratios = keep_ratios(subject)
    subject.step(other)
    assert keep_ratios(subject) != ratios
    subject.step(first)
    assert keep_ratios(subject) == pytest.approx(ratios, rel=1e-5)


def test_a_probe_of_more_samples_than_there_are_takes_those(tmp_path: Path) -> None:
    subject, all_of_them = (
        adapter("batch", "surgeon", tmp_path),
        adapter("batch", "surgeon", tmp_path, probe_samples=64),
    )
    few = inputs()[0][:4]
    np.testing.assert_array_equal(subject.step(few), all_of_them.step(few))
    assert keep_ratios(subject) == keep_ratios(all_of_them)


def changed(subject: ttac.Adapter, folder: Path, **tensors: np.ndarray) -> None:
    """Give the adapter another state."""
    path = folder / "changed.safetensors"
    subject.save(path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}
    state |= {name.replace("__", "."): value for name, value in tensors.items()}
    write_state(path, state, metadata["bundle"])
    subject.restore(path)


@pytest.mark.parametrize("select", ["blocks", "topk"])
def test_a_probe_that_sees_nothing_keeps_everything_and_says_so(select: str, tmp_path: Path) -> None:
    """Where every sample is certain beyond a doubt, the entropy is flat and no layer has a gradient."""
    subject = adapter("group", "surgeon", tmp_path, select=select)
    subject.step(inputs()[0])
    assert subject.stats["probe.blind"] == 0 and subject.stats["kept"] < 1
    bias = state_of(subject)["4.norm2.bias"]
    changed(subject, tmp_path, **{"4__norm2__bias": bias + np.arange(len(bias), dtype=np.float32) * 1e5})
    subject.step(inputs()[0])
    assert subject.stats["probe.blind"] == 1 and subject.stats["kept"] == pytest.approx(1)
    assert set(keep_ratios(subject).values()) == {1.0} and subject.stats["rejected"] == 0


def blind_steps() -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Gradients of a probe of two layers, [3] and [2], that say nothing."""
    some = np.ones(3, np.float32)
    yield "zero", {"a.grad": some * 0, "b.grad": some[:2] * 0}
    yield "one is not a number", {"a.grad": some * np.nan, "b.grad": some[:2]}
    yield "the last is not a number", {"a.grad": some, "b.grad": some[:2] * np.nan}
    yield "infinite", {"a.grad": some * np.inf, "b.grad": some[:2]}
    yield "too large for a square", {"a.grad": some * 1e30, "b.grad": some[:2]}


@pytest.mark.parametrize(("why", "gradient_arrays"), list(blind_steps()), ids=[why for why, _ in blind_steps()])
def test_gradients_that_say_nothing_keep_everything(why: str, gradient_arrays: Arrays) -> None:
    found = importance_of(gradient_arrays)
    assert found["probe.blind"] == 1 and found["kept"] == 1.0
    np.testing.assert_array_equal(found["keep.ratios.next"], [1, 1])


def test_importance_by_hand() -> None:
    """I = sqrt(mean g^2) * ln(sum m / m), over its maximum, times `keep`."""
    found = importance_of({"a.grad": np.array([3, 4, 0], np.float32), "b.grad": np.array([1, 1], np.float32)}, keep=0.5)
    first, second = np.sqrt(25 / 3) * np.log(400 / 300), np.log(400 / 100)
    largest = max(first, second)
    expected = 0.5 * np.array([first, second]) / largest
    np.testing.assert_allclose(found["keep.ratios.next"], expected, rtol=1e-5)
    assert found["probe.blind"] == 0 and found["kept"] == pytest.approx((expected * [0.75, 0.25]).sum(), rel=1e-5)
    alone = importance_of({"a.grad": np.ones(3, np.float32)}, keep=0.5)
    assert alone["probe.blind"] == 1, "with one layer the paper's memory term is -ln 1"


def importance_of(gradient_arrays: Arrays, keep: float = 1.0) -> Arrays:
    """Outputs of the graph for layers of 300 and 100 elements."""
    import onnx_ir as ir

    from tests.support.whole_models import SINGLE, spelled
    from ttac.methods.surgeon.importance import importance
    from ttac.passes.graph.execute import run
    from ttac.passes.graph.state import StateTensor
    from ttac.passes.plan.keep_ratios import Layer
    from ttac.passes.step_graphs.context import Context

    names = [name.removesuffix(".grad") for name in gradient_arrays]
    parameters = [
        StateTensor(name=name, role="parameter", initial=np.ones_like(g), value=ir.val(name, SINGLE, g.shape))
        for name, g in zip(names, gradient_arrays.values(), strict=True)
    ]
    layers = [
        Layer(parameter=name, gradient=f"{name}.grad", labels=frozenset({name}), elements=size)
        for name, size in zip(names, (300, 100), strict=False)
    ]
    context = context_of(Context, parameters, list(gradient_arrays), layers, keep)
    made = importance(context)
    return run(spelled(made.model), {**gradient_arrays, "keep.ratios": np.ones(len(layers), np.float32)})


def context_of(kind: Any, parameters: Any, gradients: list[str], layers: Any, keep: float) -> Any:
    """A context with the fields that the importance reads."""
    from dataclasses import fields

    given = {
        "opset": 18,
        "parameters": parameters,
        "gradients": gradients,
        "layers": layers,
        "settings": {"keep": keep},
    }
    return kind(**{field.name: given.get(field.name) for field in fields(kind)})


# --- values that are not finite, and misfits ----------------------------------------------------------------------


@pytest.mark.parametrize("select", ["blocks", "levels", "threshold", "topk"])
def test_a_step_that_overflows_changes_nothing(select: str, tmp_path: Path) -> None:
    """One sample so large that its convolution is infinite: nothing of it may reach the parameters."""
    subject = adapter("batch", "half", tmp_path, select=select)
    x = inputs()[0].copy()
    x[5] = np.clip(x[5], -1, 1) * np.float32(3e38)
    before = state_of(subject)
    subject.step(x)
    assert subject.stats["rejected"] == 1
    after = state_of(subject)
    assert all(np.array_equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("ratio", ["-0.1", "1.5", "nan", "some"])
@pytest.mark.parametrize("name", ["surgeon", "dropit"])
def test_a_ratio_that_is_none(name: str, ratio: str, run: Run, tmp_path: Path) -> None:
    seen = run("compile", str(model("batch")), "--method", name, "--set", f"keep={ratio}", "-o", str(tmp_path / "b"))
    assert seen.code == 2 and seen.err.startswith("error: ") and "keep" in seen.err and "\nhint: " in seen.err
    assert list(tmp_path.iterdir()) == []


def test_a_selection_that_is_none(run: Run, tmp_path: Path) -> None:
    seen = run("compile", str(model("batch")), "--method", "surgeon", "--set", "select=top", "-o", str(tmp_path / "b"))
    assert seen.code == 2 and "topk" in seen.err and list(tmp_path.iterdir()) == []


def test_more_samples_than_planned(tmp_path: Path) -> None:
    subject = adapter("batch", "surgeon", tmp_path, select="blocks")
    subject.step(inputs()[0])
    before, stats = state_of(subject), subject.stats
    with pytest.raises(UsageError, match=f"planned for {BATCH}"):
        subject.step(np.concatenate([inputs()[0], inputs()[1][:1]]))
    after = state_of(subject)
    assert all(np.array_equal(after[name], before[name]) for name in before) and subject.stats == stats


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_one_tensor_of_each_norm_is_kept(kind: str, tmp_path: Path) -> None:
    """The input alone is kept, no value computed from the input; the statistics are dense."""
    report = ttac.Bundle.read(bundle(kind, "surgeon", tmp_path, select="blocks")).report
    ways = [row["how"] for row in report["plan"]]
    assert ways.count("blocks") == 7 and set(ways) <= {"blocks", "bits", "dense", "recompute"}
    assert all(row["bytes"] <= 4096 for row in report["plan"] if row["how"] == "dense")


# --- every kind of net and selection ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("select", ["blocks", "levels", "threshold", "topk"])
@pytest.mark.parametrize("name", ["resnext", "densenet", "mobilenet_v3", "transformer", "signal"])
def test_any_net_and_selection(name: str, select: str, tmp_path: Path) -> None:
    """It learns, on fewer samples too."""
    folder = compiled(MODELS[name], tmp_path, method="surgeon", batch=32, settings={"select": select, "lr": 1e-3})
    subject = ttac.load(folder, threads=1)
    initial = state_of(subject)
    for n in (32, 7, 2):
        assert np.isfinite(subject.step(samples(subject.input_shape, n))).all()
    assert subject.stats["rejected"] == 0 and 0 < subject.stats["kept"] <= 1
    after = state_of(subject)
    assert sum(not np.array_equal(after[key], initial[key]) for key in after if key.endswith(".scale")) > 1
