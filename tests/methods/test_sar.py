"""SAR: the steps of the paper, batches without reliable samples, and the norms that stay untrained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.adapted import (
    BATCH,
    CLASSES,
    KINDS,
    UNTRAINED,
    compiled,
    golden,
    inputs,
    model,
    seed_of,
    state_of,
    worst,
)
from tests.support.tiny_bundles import read
from ttac import methods
from ttac.methods.sar.sharpness import reset_threshold
from ttac.passes.differentiate.heads import Head
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.norm_sites import find_norms
from ttac.passes.step_graphs.context import Context
from ttac.passes.step_graphs.last_stage import last_stage
from ttac.runtime.program.words import Run, all_words
from ttac.spec import Facts

MODELS = Path(__file__).resolve().parents[1] / "models"
DEMO = Path(ttac.__file__).resolve().parent / "demo"
SETTLED = methods.find("sar").settle


def entropies(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.asarray(-(p * np.log(p)).sum(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", ["sar", "recovering"])
def test_five_steps_equal_pytorch(kind: str, run: str, tmp_path: Path) -> None:
    assert worst(kind, run, tmp_path) < 1e-4
    if run == "recovering":
        assert golden(kind, run)["recoveries"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_golden_run_is_that_of_the_peer(kind: str) -> None:
    pytest.importorskip("torch")
    from tests.golden.make.adapted_nets import build, trajectory

    given = inputs(seed_of(kind))
    found = trajectory("sar", build(kind, seed_of(kind), given), kind, given)
    np.testing.assert_allclose(found["sar/logits"], golden(kind, "sar")["logits"], atol=1e-4)


def test_a_batch_without_reliable_samples_changes_nothing(tmp_path: Path) -> None:
    """After real steps, with momentum and average under way: every tensor stays, bit for bit."""
    adapter = ttac.load(compiled("group", "sar", tmp_path), threads=1)
    for x in inputs(seed_of("group"))["x"]:
        adapter.step(x)
    before = state_of(adapter, tmp_path)
    assert before["entropy.average"] > 0 and np.abs(before["sgd.v"]).max() > 0
    pool = np.random.default_rng(5).standard_normal((20, BATCH, 3, 8, 8), dtype=np.float32)
    unsure = np.concatenate([x[entropies(adapter.predict(x)) > 0.65 * np.log(CLASSES)] for x in pool])[:BATCH]
    assert len(unsure) == BATCH
    expected = adapter.predict(unsure)
    np.testing.assert_array_equal(adapter.step(unsure), expected)
    after = state_of(adapter, tmp_path)
    assert adapter.stats["selected"] == 0 and all(np.array_equal(after[name], before[name]) for name in before)


def test_no_sample_left_at_the_perturbed_point_restores_exactly(tmp_path: Path) -> None:
    adapter = ttac.load(compiled("group", "sar", tmp_path, rho=1.0), threads=1)
    before = state_of(adapter, tmp_path)
    confirmed = []
    for x in inputs(seed_of("group"))["x"].reshape(-1, 1, 3, 8, 8):
        adapter.reset()
        adapter.step(x)
        if adapter.stats.get("selected"):
            confirmed.append(adapter.stats["confirmed"])
        if adapter.stats.get("selected") and not adapter.stats["confirmed"]:
            after = state_of(adapter, tmp_path)
            assert all(np.array_equal(after[name], before[name]) for name in before)
    assert 0.0 in confirmed, "no step reached the perturbed point and found nothing there"


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_stage_stays_untrained(kind: str, tmp_path: Path) -> None:
    sites = read(compiled(kind, "sar", tmp_path))["sites"]
    assert tuple(sorted(s["name"] for s in sites if not s["trained"])) == tuple(sorted(UNTRAINED[kind]))
    everything = read(compiled(kind, "sar", tmp_path, exclude_last_stage=False))["sites"]
    assert all(site["trained"] for site in everything)


@pytest.mark.parametrize("path", [*sorted(MODELS.glob("*.onnx")), *sorted(DEMO.glob("*.onnx"))], ids=lambda p: p.stem)
def test_a_last_stage_is_some_but_not_all_of_the_norms(path: Path) -> None:
    found = normalise(load(path), simplifier=None)
    sites = find_norms(found).sites
    left = last_stage(found, sites)
    assert sites or not left
    names = [site.name for site in sites]
    assert len(left) <= max(0, len(names) - 1) and (len(names) < 2 or names[-1] in left)
    positions = [i for i, name in enumerate(names) if name in left]
    assert positions == list(range(len(names) - len(left), len(names))), "a stage is the end of the network"


def test_residuals_of_the_first_pass_are_freed_before_the_second(tmp_path: Path) -> None:
    ttac.compile(DEMO / "fashion_vit.onnx", method="sar", batch=8, output=tmp_path / "vit.ttac")
    adapter = ttac.load(tmp_path / "vit.ttac", threads=1)
    words = list(all_words(adapter._executor.form.programs["step"]))
    names = [word.graph if isinstance(word, Run) else "" for word in words]
    ascend = names.index("ascend")
    first, forward = words[ascend], words[names.index("forward", ascend)]
    assert isinstance(first, Run) and isinstance(forward, Run)
    residuals = set(forward.fetch) - {"entropy.samples"}
    assert residuals and not residuals & first.keep


def test_learning_rates_of_the_official_code() -> None:
    def rate(batch: int, *kinds: str) -> float:
        return float(SETTLED({"lr": 0.0}, Facts(batch, 1000, frozenset(kinds)))["lr"])

    assert rate(64, "layer") == pytest.approx(1e-3) and rate(1, "layer") == pytest.approx(3.125e-5)
    assert rate(64, "group") == pytest.approx(2.5e-4) and rate(1, "group") == pytest.approx(1.5625e-5)
    assert SETTLED({"lr": 0.1}, Facts(1, 10, frozenset({"batch"})))["lr"] == 0.1


def test_a_model_with_batch_norms_uses_batch_statistics(tmp_path: Path) -> None:
    path = tmp_path / "bn.ttac"
    ttac.compile(DEMO / "fashion_resnet_bn_unfolded.onnx", method="sar", batch=4, output=path)
    manifest = read(path)
    assert {site["statistics"] for site in manifest["sites"]} == {"batch"}
    assert manifest["method"]["settings"]["lr"] == pytest.approx(2.5e-4 / 64 * 4 * 2)
    adapter = ttac.load(path, threads=1)
    adapter.step(np.random.default_rng(0).random((4, 1, 28, 28), dtype=np.float32))
    assert adapter.stats["rejected"] == 0


def test_a_selector_overrides_the_exclusion(tmp_path: Path) -> None:
    ttac.compile(model("layer"), method="sar", batch=2, output=tmp_path / "x.ttac", train="blocks.3", norms="keep")
    assert [site["trained"] for site in read(tmp_path / "x.ttac")["sites"]] == [True, True]


@pytest.mark.parametrize(("classes", "threshold"), [(1000, 0.2), (2, 0.2 * np.log(2) / np.log(1000))])
def test_the_reset_threshold_scales_with_the_classes(classes: int, threshold: float) -> None:
    context = Context(
        parameters=[],
        gradients=[],
        logits="y",
        head=Head(kind="classes", shape=("N", classes), axis=1, values="logits"),
        settings={"reset_threshold": 0.2},
        opset=18,
    )
    assert reset_threshold(context) == pytest.approx(threshold)


@pytest.mark.parametrize(("settings", "recovered"), [({}, 0.0), ({"reset_threshold": 9.0}, 1.0)])
def test_a_step_says_whether_it_recovered(settings: dict[str, float], recovered: float, tmp_path: Path) -> None:
    adapter = ttac.load(compiled("group", "sar", tmp_path, **settings), threads=1)
    before = state_of(adapter, tmp_path)
    for x in inputs(seed_of("group"))["x"]:
        adapter.step(x)
        assert adapter.stats.get("recovered", recovered) == recovered
    assert "recovered" in adapter.stats
    moved = any(not np.array_equal(array, before[name]) for name, array in state_of(adapter, tmp_path).items())
    assert moved != bool(recovered)
