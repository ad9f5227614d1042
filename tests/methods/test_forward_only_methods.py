"""NEO and T3A: against their published code, and the models that they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import ttac
from tests.methods.test_lame import NO_LINEAR_LAYER, logits_and_features
from tests.support.adapted import BATCH, KINDS, golden, inputs, model, seed_of
from tests.support.official import official, trajectory, worst
from tests.support.source_models import saved, source
from tests.support.whole_models import MODELS, compiled, refused, samples, state_of
from ttac import demo
from ttac.errors import UnsupportedError, UsageError

IMAGE = (3, 16, 16)
METHODS = ("neo", "t3a")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", ["neo", "neo-newest"])
def test_five_steps_equal_the_published_code(run: str, kind: str, tmp_path: Path) -> None:
    assert worst(run, kind, tmp_path) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_five_steps_of_prototypes_equal_the_published_code(kind: str, tmp_path: Path) -> None:
    found, expected = trajectory("t3a", kind, tmp_path), official("t3a", kind)
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=1e-4)
    kept = np.sort(found["supports.entropy"].reshape(-1))[: len(expected["after/entropies"])]
    np.testing.assert_allclose(kept, np.sort(expected["after/entropies"]), rtol=0, atol=1e-4)


def test_a_stream_with_the_mean_of_the_source_changes_nothing(tmp_path: Path) -> None:
    """With `origin=source`; the published centre changes every logit."""
    x = samples(IMAGE, 32)
    logits, features = logits_and_features(MODELS["resnet"], x)
    assert features.mean() > 0.1
    found = {
        origin: ttac.load(
            compiled(MODELS["resnet"], tmp_path, method="neo", batch=32, calibration=x, settings={"origin": origin})
        ).step(x)
        for origin in ("source", "zero")
    }
    np.testing.assert_allclose(found["source"], logits, rtol=0, atol=1e-4)
    assert np.abs(found["zero"] - logits).max() > 0.1


@pytest.mark.parametrize("net", ["fashion_vit", "fashion_resnet_gn"])
def test_8_bits_move_the_scores_as_float_moves_the_features(net: str, tmp_path: Path) -> None:
    """The scores of a classifier in 8 bits less those of the mean; the guard watches both."""
    with np.load(demo.file("fashion_stream.npz")) as stream:
        x = stream["contrast"][:64].astype(np.float32) / 255
    options = {"batch": 64, "calibration": demo.file("fashion_calibration.npz")}
    found = {}
    for quantize in (None, "int8"):
        for method in ("neo", "source"):
            guard = {"settings": {"guard": "on"}} if method == "neo" else {}
            path = compiled(demo.file(f"{net}.onnx"), tmp_path, method=method, quantize=quantize, **options, **guard)
            adapter = ttac.load(path)
            found[quantize, method] = adapter.step(x)
            assert method == "source" or adapter.stats["held"] == 0
    moves = [found[quantize, "neo"] - found[quantize, "source"] for quantize in (None, "int8")]
    assert np.abs(moves[0]).max() > 1 and np.abs(moves[0] - moves[0][0]).max() < 1e-3
    assert np.abs(moves[1] - moves[1][0]).max() < 1e-3 and np.abs(moves[1] - moves[0]).max() < 0.2


def test_the_mean_counts_samples_and_reset_forgets(tmp_path: Path) -> None:
    adapter = ttac.load(compiled(MODELS["resnet"], tmp_path, method="neo", batch=12))
    parts = [samples(IMAGE, n, seed=n) for n in (12, 5, 1)]
    for x in parts:
        adapter.step(x)
    features = logits_and_features(MODELS["resnet"], np.concatenate(parts))[1]
    np.testing.assert_allclose(state_of(adapter)["features.mean"], features.mean(0), rtol=0, atol=1e-5)
    before = adapter.predict(parts[0])
    np.testing.assert_array_equal(adapter.predict(parts[0]), before)
    adapter.reset()
    assert not state_of(adapter)["features.mean"].any() and state_of(adapter)["features.count"] == 0


def test_single_samples_suffice_for_prototypes(tmp_path: Path) -> None:
    """The order of the samples in time decides, not their batches, once the predictions of a batch are its last."""
    batches = ttac.load(compiled(MODELS["resnet"], tmp_path, method="t3a", batch=12))
    alone = ttac.load(compiled(MODELS["resnet"], tmp_path, method="t3a", batch=1))
    x = samples(IMAGE, 12)
    together = batches.step(x)
    for i in range(12):
        last = alone.step(x[i : i + 1])
    np.testing.assert_allclose(last[0], together[11], rtol=0, atol=1e-5)
    found, expected = (state_of(adapter)["supports.entropy"] for adapter in (alone, batches))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_stay_probabilities(method: str, tmp_path: Path) -> None:
    net = onnx.load(MODELS["resnet"])
    net.graph.node.append(onnx.helper.make_node("Softmax", [net.graph.output[0].name], ["given"], axis=1))
    net.graph.output[0].name = "given"
    found = ttac.load(compiled(saved(net, tmp_path), tmp_path, method=method, batch=4)).step(samples(IMAGE, 4))
    plain = ttac.load(compiled(MODELS["resnet"], tmp_path, method=method, batch=4)).step(samples(IMAGE, 4))
    powers = np.exp(plain - plain.max(1, keepdims=True))
    np.testing.assert_allclose(found, powers / powers.sum(1, keepdims=True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_a_linear_layer_is_refused(method: str, tmp_path: Path) -> None:
    path = saved(source(NO_LINEAR_LAYER, {}), tmp_path)
    assert "no linear layer" in refused(UnsupportedError, path, method=method)


def test_the_source_centre_needs_calibration() -> None:
    assert "without source samples" in refused(
        UsageError, MODELS["resnet"], method="neo", settings={"origin": "source"}
    )


def test_the_golden_nets_are_those_of_the_other_methods(tmp_path: Path) -> None:
    """The official runs begin at the same network as the golden runs of TENT."""
    for kind in KINDS:
        adapter = ttac.load(compiled(model(kind), tmp_path, method="source", batch=BATCH))
        first = adapter.step(inputs(seed_of(kind))["x"][0])
        np.testing.assert_allclose(first, golden(kind, "tent")["logits"][0], rtol=0, atol=1e-4)
