"""CoTTA: steps of the published code, the teacher's predictions, the random return, and the models that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ttac
from tests.support.adapted import BATCH, KINDS, inputs, model, seed_of
from tests.support.consistency_case import numbers
from tests.support.official import SETTINGS, official, trajectory, worst
from tests.support.source_models import saved
from tests.support.tiny_bundles import read
from tests.support.whole_models import MODELS, compiled, refused, state_of
from ttac.bake import bake
from ttac.errors import UnsupportedError, UsageError
from ttac.passes.operators.random_numbers import seeded
from ttac.passes.step_graphs import optimizers


def adapted(folder: Path, **choices: Any) -> tuple[Path, ttac.Adapter]:
    """Return a bundle of the convolutional network, and its adapter after two steps."""
    path = choices.pop("path", model("group"))
    settings = {**SETTINGS["cotta"], **choices.pop("settings", {})}
    bundle = compiled(path, folder, method="cotta", batch=BATCH, norms="keep", settings=settings, **choices)
    adapter = ttac.load(bundle, threads=1)
    for x in inputs(seed_of("group"))["x"][:2]:
        adapter.step(x)
    return bundle, adapter


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", ["cotta", "cotta-imagenet"])
def test_five_steps_equal_the_published_code(run: str, kind: str, tmp_path: Path) -> None:
    assert worst(run, kind, tmp_path) < 1e-4


def test_all_weights_equal_the_published_code(tmp_path: Path) -> None:
    found, expected = trajectory("cotta-all", "group", tmp_path, train="all"), official("cotta-all", "group")
    assert expected.pop("unsure").tolist() == found["unsure"].tolist()
    for key, value in expected.items():
        name = key.removeprefix("after/")
        ours = found[name] if name in found else found[name.replace(".weight", ".scale")]
        np.testing.assert_allclose(ours, value, rtol=0, atol=1e-4)


def test_the_golden_runs_take_both_branches() -> None:
    assert {float(u) for kind in KINDS for u in official("cotta", kind)["unsure"]} == {0.0, 1.0}


def test_predict_and_bake_take_the_teacher(tmp_path: Path) -> None:
    bundle, adapter = adapted(tmp_path, settings={"confidence": 1.1})
    x = inputs(seed_of("group"))["x"][2]
    adapter.save(tmp_path / "state")
    baked = bake(bundle, tmp_path / "state", tmp_path / "baked.onnx")
    plain = ttac.load(compiled(baked.path, tmp_path, method="source", batch=BATCH)).predict(x)
    np.testing.assert_allclose(adapter.predict(x), plain, rtol=0, atol=1e-5)
    state = state_of(adapter)
    assert np.abs(state["1.scale"] - state["teacher.1.scale"]).max() > 1e-3


def test_an_unsure_source_averages_views(tmp_path: Path) -> None:
    _, adapter = adapted(tmp_path, settings={"confidence": 1.1})
    x = inputs(seed_of("group"))["x"][2]
    assert np.abs(adapter.step(x) - adapter.predict(x)).max() > 0.01
    assert adapter.stats["unsure"] == 1.0


def test_the_answer_has_the_form_of_the_output(tmp_path: Path) -> None:
    net = onnx.load(model("group"))
    net.graph.node.append(onnx.helper.make_node("Softmax", [net.graph.output[0].name], ["answers"], axis=1))
    net.graph.output[0].name = "answers"
    _, adapter = adapted(tmp_path, path=saved(net, tmp_path))
    np.testing.assert_allclose(adapter.step(inputs(seed_of("group"))["x"][0]).sum(1), 1.0, rtol=1e-5)


def test_every_number_returns_by_its_own_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tensors are stepped in graphs of their own, after the small ones, and count back from the moved seed."""
    monkeypatch.setattr(optimizers, "LARGE_ELEMENTS", 100)
    monkeypatch.setattr(optimizers, "SEPARATE_ELEMENTS", 200)
    settings = {**SETTINGS["cotta"], "lr": 1.0, "restored": 0.3, "confidence": 1.1}
    bundle = compiled(
        model("group"), tmp_path, method="cotta", batch=BATCH, norms="keep", train="all", settings=settings
    )
    assert [word for word in read(bundle)["programs"]["step"] if word.get("deferred")]
    adapter = ttac.load(bundle, threads=1)
    source, order = state_of(adapter), [t["name"] for t in read(bundle)["state"]["tensors"] if t["role"] == "parameter"]
    state = [int(word) for word in seeded(4)]
    for x in inputs(seed_of("group"))["x"][:2]:
        adapter.step(x)
        after, stream = state_of(adapter), numbers(state)
        for large in (False, True):
            for name in order:
                if (source[name].size >= 100) is large:
                    drawn = np.array([next(stream) for _ in range(source[name].size)]).reshape(source[name].shape)
                    returned = after[name] == source[name]
                    assert returned[drawn < 0.3].all() and returned[drawn >= 0.3].mean() < 0.2, name


def test_reset_brings_back_teacher_and_seed(tmp_path: Path) -> None:
    _, adapter = adapted(tmp_path)
    x = inputs(seed_of("group"))["x"][0]
    adapter.reset()
    first = adapter.step(x)
    adapter.reset()
    np.testing.assert_array_equal(adapter.step(x), first)


def test_signals_are_refused() -> None:
    assert "only images" in refused(UnsupportedError, MODELS["signal"], method="cotta")


def test_a_range_that_is_none_is_refused() -> None:
    assert "white is not above" in refused(UsageError, MODELS["resnet"], method="cotta", settings={"white": "-1"})
