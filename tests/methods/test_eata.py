"""EATA and ETA: selection, weights, anchor, against PyTorch and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.adapted import CLASSES, KINDS, SETTINGS, compiled, golden, inputs, seed_of, state_of, worst
from tests.support.source_models import saved, source
from tests.support.tiny_bundles import read
from ttac import methods
from ttac.spec import Facts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", ["tent", "eta", "eata"])
def test_five_steps_equal_pytorch(kind: str, run: str, tmp_path: Path) -> None:
    assert worst(kind, run, tmp_path) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", ["eta", "eata"])
def test_the_golden_run_is_that_of_the_peer(kind: str, run: str) -> None:
    pytest.importorskip("torch")
    from tests.golden.make.adapted_nets import build, trajectory

    given = inputs(seed_of(kind))
    found = trajectory(run, build(kind, seed_of(kind), given), kind, given)
    np.testing.assert_allclose(found[f"{run}/logits"], golden(kind, run)["logits"], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_anchor_makes_a_difference(kind: str) -> None:
    free, held = golden(kind, "eta"), golden(kind, "eata")
    assert max(float(np.abs(free[name] - held[name]).max()) for name in held if name != "logits") > 1e-3


def test_selection_by_hand(tmp_path: Path) -> None:
    """The moving average and the count after two steps, from the logits alone."""
    adapter = ttac.load(compiled("group", "eta", tmp_path), threads=1)
    margin, redundancy = SETTINGS["eta"]["margin"] * np.log(CLASSES), SETTINGS["eta"]["redundancy"]
    average = np.zeros(CLASSES)
    for x in inputs(seed_of("group"))["x"][:2]:
        logits = adapter.step(x).astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        cosine = p @ average / np.maximum(np.linalg.norm(p, axis=1) * np.linalg.norm(average), 1e-8)
        chosen = (-(p * np.log(p)).sum(1) < margin) & (np.abs(cosine) < redundancy)
        assert adapter.stats["selected"] == chosen.sum() > 0
        average = 0.9 * average + 0.1 * p[chosen].mean(0) if average.any() else p[chosen].mean(0)
        np.testing.assert_allclose(state_of(adapter, tmp_path)["probabilities.average"], average, atol=1e-6)


def test_nothing_selected_changes_nothing(tmp_path: Path) -> None:
    adapter = ttac.load(compiled("layer", "eta", tmp_path, margin=0.0), threads=1)
    before = state_of(adapter, tmp_path)
    adapter.step(inputs(seed_of("layer"))["x"][0])
    after = state_of(adapter, tmp_path)
    assert adapter.stats["selected"] == 0 and all(np.array_equal(after[name], before[name]) for name in before)


def test_without_fisher_calibration_changes_nothing(tmp_path: Path) -> None:
    """`--set fisher=0` with calibration data is ETA: the same graphs as without."""
    held, free = compiled("group", "eata", tmp_path, fisher=0.0), compiled("group", "eta", tmp_path)
    assert read(held)["files"]["update.onnx"] == read(free)["files"]["update.onnx"]


def test_the_bound_of_redundancy_follows_the_classes() -> None:
    settle = methods.find("eata").settle
    bounds = [
        settle({"redundancy": 0.0}, Facts(64, classes, frozenset()))["redundancy"] for classes in (2, 3, 10, 100, 1000)
    ]
    assert bounds == [0.9, 0.4, 0.4, 0.1, 0.05]
    assert settle({"redundancy": 0.2}, Facts(64, 10, frozenset()))["redundancy"] == 0.2


def test_a_model_that_ends_in_a_softmax_selects_by_its_scores(tmp_path: Path) -> None:
    """The same model with and without its last Softmax learns the same."""
    weights = {"conv.weight": (4, 3, 3, 3), "in.w": (4,), "in.b": (4,), "fc.weight": (5, 4)}
    norm = 'n = InstanceNormalization (c, "in.w", "in.b")'
    body = f'c = Conv (x, "conv.weight") {norm} r = Relu (n) p = GlobalAveragePool (r)'
    start = f"net (float[N,3,8,8] x) => (float[N,5] y) {{ {body} f = Flatten (p) "
    ends = {"scores": 'y = Gemm <transB = 1> (f, "fc.weight") }'}
    ends["softmax"] = 'z = Gemm <transB = 1> (f, "fc.weight") y = Softmax <axis = 1> (z) }'
    states = []
    for name, end in ends.items():
        folder = tmp_path / name
        folder.mkdir()
        path = saved(source(start + end, weights), folder)
        settings = {"margin": 1.1, "redundancy": 1.0, "lr": 0.1}
        ttac.compile(path, method="eata", batch=4, output=folder / "x.ttac", settings={"guard": "off", **settings})
        adapter = ttac.load(folder / "x.ttac", threads=1)
        for seed in range(2):
            adapter.step(np.random.default_rng(seed).standard_normal((4, 3, 8, 8), dtype=np.float32))
        assert adapter.stats["selected"] == 4
        states.append(state_of(adapter, folder))
    assert states[0]["probabilities.average"].sum() == pytest.approx(1.0)
    for name, value in states[0].items():
        np.testing.assert_allclose(states[1][name], value, atol=1e-6)
