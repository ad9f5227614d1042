"""ZOA: steps of the published code, 8 bits, the trained norms, bake, and the models and batches that it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import ttac
from tests.support.adapted import model
from tests.support.official_zoa import BATCH, KINDS, given, network, official, trajectory
from tests.support.source_models import saved, source
from tests.support.whole_models import MODELS, compiled, normal, parameters_of, refused, samples, sites_of, state_of
from ttac import bake, demo
from ttac.errors import UnsupportedError, UsageError
from ttac.passes.graph.waists import waists

NO_LINEAR_LAYER = """
net (float[batch,4,8,8] x) => (float[batch,4] y) {
  n = BatchNormalization (x, scale, bias, mean, var)
  c = Relu (n)
  p = GlobalAveragePool (c)
  y = Flatten (p)
}
"""
SMALL = {"domain_samples": 4, "domains": 2, "guard": "off"}


@pytest.mark.parametrize("kind", KINDS)
def test_nine_steps_equal_the_published_code(kind: str, tmp_path: Path) -> None:
    """Logits, losses, tensors, and a memory that fills, overflows, and mixes past domains."""
    found, expected = trajectory(kind, tmp_path), official(kind)
    if kind == "batch":  # the convolution in front of an adapted norm subtracts the source's mean
        weights = {w.name: numpy_helper.to_array(w) for w in onnx.load(network(kind)).graph.initializer}
        found["domain.mean"] = found["domain.mean"] + weights["bn1.running_mean"]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name.removeprefix("after/")], value, rtol=0, atol=1e-4, err_msg=name)
    moved = {
        name for name, array in found.items() if name.endswith((".scale", ".bias")) and f"after/{name}" in expected
    }
    assert moved == {name.removeprefix("after/") for name in expected if name.endswith((".scale", ".bias"))}
    assert expected["domains"].tolist() == [0, 0, 1, 1, 2, 3, 3, 3, 3]
    assert np.abs(expected["after/domains.changes"]).max() > 1e-3 < np.abs(expected["after/domains.weights"]).min()


@pytest.mark.parametrize("kind", KINDS)
def test_the_norms_of_the_published_list_train(kind: str, tmp_path: Path) -> None:
    path = compiled(
        network(kind), tmp_path, method="zoa", batch=8, norms="keep", calibration=given(kind)["calibration"]
    )
    trained = {name.rpartition(".")[0] for name in state_of(ttac.load(path)) if name.endswith(".scale")}
    assert trained == {n.removeprefix("after/").rpartition(".")[0] for n in official(kind) if n.endswith(".scale")}
    every = {"exclude_ends": False}
    path = compiled(
        network(kind), tmp_path, method="zoa", batch=8, norms="keep", calibration=given(kind)["calibration"],
        settings=every,
    )  # fmt: skip
    names = {name.rpartition(".")[0] for name in state_of(ttac.load(path)) if name.endswith(".scale")}
    assert names == {site.name for site in sites_of(normal(network(kind)))}


def test_the_waists_of_a_network_are_the_ends_of_its_blocks() -> None:
    found = normal(network("batch"))
    shapes = [list(value.shape or ())[1:] for _, value in waists(found.graph, found.graph.inputs)]
    ends = [shape for i, shape in enumerate(shapes) if i + 1 == len(shapes) or shapes[i + 1] != shape]
    assert ends == [[6, 32, 32], [6, 16, 16], [8, 16, 16], [8, 8, 8], [12, 4, 4], [12, 2, 2], [12, 1, 1], [12]]


def test_a_reset_repeats_the_stream_and_the_seed_changes_it(tmp_path: Path) -> None:
    arrays = given("layer")
    options = {"method": "zoa", "batch": BATCH, "calibration": arrays["calibration"]}
    runs = []
    for seed in (0, 1):
        adapter = ttac.load(compiled(model("layer"), tmp_path, settings={**SMALL, "seed": seed}, **options), threads=1)
        first = [adapter.step(batch) for batch in arrays["x"][:5]]
        adapter.reset()
        np.testing.assert_array_equal([adapter.step(batch) for batch in arrays["x"][:5]], first)
        np.testing.assert_array_equal(adapter.predict(arrays["x"][0]), adapter.predict(arrays["x"][0]))
        runs.append(np.stack(first))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert np.abs(runs[0] - runs[1]).max() > 1e-5


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("net", ["fashion_vit", "fashion_resnet_bn"])
def test_a_shifted_stream_errs_less_than_the_source(net: str, quantize: str | None, tmp_path: Path) -> None:
    """Four batches of a contrast that the shipped networks do not know; the guard works in 8 bits too."""
    with np.load(demo.file("fashion_stream.npz")) as stream:
        x, labels = stream["contrast"][:256].astype(np.float32) / 255, stream["labels"][:256]
    options = {"batch": 64, "calibration": demo.file("fashion_calibration.npz"), "quantize": quantize}
    adapter = ttac.load(compiled(demo.file(f"{net}.onnx"), tmp_path, method="zoa", settings={"guard": "on"}, **options))
    unchanged = ttac.load(compiled(demo.file(f"{net}.onnx"), tmp_path, method="source", **options))
    wrong = [
        np.mean(np.concatenate([a.step(x[i : i + 64]) for i in range(0, 256, 64)]).argmax(1) != labels)
        for a in (adapter, unchanged)
    ]
    assert wrong[0] < wrong[1] - 0.1 and "held" in adapter.stats


def test_a_step_lowers_the_loss_of_a_repeated_batch(tmp_path: Path) -> None:
    """Over forty steps; one step may raise it, as its direction is drawn."""
    arrays = given("layer")
    settings = {**SMALL, "discrepancy": 3.0, "lr": 0.002, "weight_decay": 0.0, "exclude_ends": False}
    path = compiled(model("layer"), tmp_path, method="zoa", batch=BATCH, calibration=arrays["calibration"],
                    settings=settings)  # fmt: skip
    adapter, losses = ttac.load(path, threads=1), []
    for _ in range(40):
        adapter.step(arrays["x"][2])
        losses.append(adapter.stats["loss"])
    assert losses[-1] < losses[0] - 0.05


def test_smaller_batches_show_no_domain(tmp_path: Path) -> None:
    arrays = given("layer")
    path = compiled(model("layer"), tmp_path, method="zoa", batch=8, calibration=arrays["calibration"],
                    settings={**SMALL, "domain_samples": 8})  # fmt: skip
    adapter = ttac.load(path, threads=1)
    for step, n in enumerate((8, 3, 5, 8)):
        assert np.isfinite(adapter.step(arrays["x"][2 * step][:n])).all()
        assert adapter.stats["domains"] == (step == 3)


def test_a_domain_that_begins_in_a_check_is_remembered(tmp_path: Path) -> None:
    """Every second step predicts calibration samples in place of learning; the fourth begins a new domain."""
    arrays = given("layer")
    settings = {
        **SMALL,
        "domain_samples": 8,
        "guard": "on",
        "guard_check": 2,
        "guard_information": 0.0,
        "guard_loss": 1.0,
    }
    path = compiled(model("layer"), tmp_path, method="zoa", batch=8, calibration=arrays["calibration"],
                    settings=settings)  # fmt: skip
    adapter = ttac.load(path, threads=1)
    for number in (0, 0, 0, 6):
        before = parameters_of(adapter)
        adapter.step(arrays["x"][number][:8])
    assert all(np.array_equal(parameters_of(adapter)[name], array) for name, array in before.items())
    assert "check_loss" in adapter.stats and state_of(adapter)["domains.count"] == 1


def test_bake_takes_a_state_without_a_shift(tmp_path: Path) -> None:
    arrays = given("batch")
    for shift in (0.0, 1.0):
        path = compiled(
            network("batch"), tmp_path, method="zoa", batch=BATCH, norms="keep", calibration=arrays["calibration"],
            settings={**SMALL, "shift": shift},
        )  # fmt: skip
        adapter = ttac.load(path)
        for batch in arrays["x"]:
            adapter.step(batch)
        adapter.save(tmp_path / "state.safetensors")
        if shift:
            with pytest.raises(UnsupportedError, match=r"`stream.centre` was adapted"):
                bake.bake(path, tmp_path / "state.safetensors", tmp_path / "baked.onnx", force=True)
        else:
            baked = bake.bake(path, tmp_path / "state.safetensors", tmp_path / "baked.onnx", force=True)
            assert baked.replaced["parameter"] == 20


def test_other_models_and_steps_are_refused(tmp_path: Path) -> None:
    x = samples((3, 16, 16), 32)
    assert "--batch 16" in refused(UnsupportedError, MODELS["resnet"], method="zoa", batch=1, calibration=x)
    assert "--calibration PATH" in refused(UsageError, MODELS["resnet"], method="zoa")
    norm = {name: np.full(4, name in ("scale", "var"), np.float32) for name in ("scale", "bias", "mean", "var")}
    path = saved(source(NO_LINEAR_LAYER, norm), tmp_path)
    assert "no linear layer" in refused(UnsupportedError, path, method="zoa", calibration=samples((4, 8, 8), 32))
    message = refused(UnsupportedError, MODELS["resnet"], method="zoa", train="all", calibration=x)
    assert "trains no weights" in message and "`tent`" in message and "`zoa`, " not in message
