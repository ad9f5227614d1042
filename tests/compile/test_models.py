"""Whole models: TENT's gradients as a bundle's own graphs compute them, against PyTorch and onnxruntime-training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import ttac
from tests.support import ort_oracle, tiny_bundles
from tests.support.whole_models import (
    BATCH,
    MODELS,
    compiled,
    executed,
    golden,
    golden_gradients,
    gradient_errors,
    samples,
    under_our_names,
)
from ttac.passes.adapt.adapt_norms import adapt_norms
from ttac.passes.differentiate.losses import attach_loss
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.norm_sites import find_norms
from ttac.spec import BATCH_STATISTICS

pytestmark = pytest.mark.slow
BOUND = 1e-5
"""On gradients, relative to the length of all gradients in one vector; torch's own float32 is within 1e-6."""
ORACLE_LACKS = {"hourglass": "ConvTranspose, GroupNormalization, PRelu, Resize"}
over_models = pytest.mark.parametrize("name", list(MODELS))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every model compiled once, verification on."""
    folder = tmp_path_factory.mktemp("bundles")
    return {name: compiled(path, folder, batch=BATCH) for name, path in MODELS.items()}


def inputs(name: str) -> np.ndarray:
    dims = onnx.load(MODELS[name]).graph.input[0].type.tensor_type.shape.dim
    return samples([dim.dim_value for dim in dims][1:])


@over_models
def test_logits_and_gradients_are_those_of_pytorch(name: str, bundles: dict[str, Path]) -> None:
    expected, values = golden(name), executed(bundles[name], inputs(name))
    scale = np.abs(expected["logits"]).max()
    np.testing.assert_allclose(values["logits"], expected["logits"], rtol=0, atol=2e-5 * scale)
    errors = gradient_errors(values, golden_gradients(name))
    assert max(errors.values()) <= BOUND, sorted(errors.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ORACLE_LACKS])
def test_gradients_are_those_of_onnxruntime_training(name: str, bundles: dict[str, Path]) -> None:
    model = normalise(load(MODELS[name]))
    sites = find_norms(model).sites
    adaptation = adapt_norms(model, sites, BATCH_STATISTICS, {}, trains=True)
    attached = attach_loss(model, "entropy", model.graph.outputs[0])
    feeds = {tensor.name: tensor.initial for tensor in adaptation.state} | {"x": inputs(name)}
    wrt = [tensor.name for tensor in adaptation.parameters]
    expected = ort_oracle.gradients(model, str(attached.scalar.name), wrt, feeds)
    errors = gradient_errors(executed(bundles[name], inputs(name)), expected)
    assert max(errors.values()) <= BOUND, sorted(errors.items(), key=lambda item: -item[1])[:5]


@over_models
def test_every_norm_is_found_and_trained(name: str, bundles: dict[str, Path]) -> None:
    manifest = tiny_bundles.read(bundles[name])
    trained = {tensor["name"] for tensor in manifest["state"]["tensors"] if tensor["role"] == "parameter"}
    assert trained == set(golden_gradients(name))
    assert all(site["trained"] for site in manifest["sites"])
    kinds = {(site["kind"], site["statistics"]) for site in manifest["sites"]}
    assert kinds <= {("batch", "batch"), ("layer", "sample"), ("group", "sample")}


@over_models
def test_verification_ran(name: str, bundles: dict[str, Path]) -> None:
    verified = json.loads((bundles[name] / "report.json").read_text())["verified"]
    numbers = {key for key, value in verified.items() if value is not None}
    assert numbers == {"logits_off", "logits_halves", "gradients_halves", "logits_optimised", "derivative"}
    assert verified["logits_off"] <= 1e-5 and verified["gradients_halves"] <= 1e-5 and verified["derivative"] <= 2e-2


@over_models
def test_a_step_predicts_with_batch_statistics_and_then_moves(name: str, bundles: dict[str, Path]) -> None:
    expected, adapter = golden(name), ttac.load(bundles[name])
    scale = np.abs(expected["logits"]).max()
    x = inputs(name)
    np.testing.assert_allclose(adapter.step(x), expected["logits"], rtol=0, atol=2e-5 * scale)
    assert adapter.stats["entropy"] == pytest.approx(expected["entropy"].item(), rel=1e-4)
    moved = adapter.predict(x)
    assert np.abs(moved - expected["logits"]).max() > 1e-3 * scale
    log_p = moved - np.logaddexp.reduce(moved, axis=1, keepdims=True)
    assert -(np.exp(log_p) * log_p).sum(axis=1).mean() < expected["entropy"].item()


@over_models
def test_a_smaller_last_batch(name: str, bundles: dict[str, Path]) -> None:
    """The batch is free in all graphs: three samples give PyTorch's outputs for three."""
    torch = pytest.importorskip("torch")
    from tests.golden.make import model_gradients as make_models

    x = inputs(name)[:3]
    net = make_models.build(name, make_models.told(name)["seed"])
    expected, values = make_models.numbers(net.double(), torch.from_numpy(x).double()), executed(bundles[name], x)
    scale = np.abs(expected["logits"]).max()
    np.testing.assert_allclose(values["logits"], expected["logits"], rtol=0, atol=2e-5 * scale)
    assert gradient_errors(values, under_our_names(expected))["all"] <= BOUND
