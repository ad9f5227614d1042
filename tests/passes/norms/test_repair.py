"""Norms that an exporter folded: beside norms that survive, in linear layers; and norms it wrote as another operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import ttac
from tests.support.source_models import Weights, norm, saved, source
from ttac.errors import UnsupportedError
from ttac.passes.graph.execute import run
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.insert import insert_norms
from ttac.passes.norms.norm_choice import decide
from ttac.passes.norms.norm_sites import ModelNorms, find_norms

PARTLY = """
net (float[N,3,8,8] x) => (float[N,5] y) {
  a = Conv <pads = [1,1,1,1]> (x, "k0", "b0")
  b = Relu (a)
  c = Conv <pads = [1,1,1,1]> (b, "k1", "b1")
  d = Relu (c)
  e = Conv <pads = [1,1,1,1]> (d, "k2")
  f = BatchNormalization (e, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  g = Relu (f)
  p = GlobalAveragePool (g)
  q = Flatten (p)
  y = Gemm <transB = 1> (q, "fc.weight", "fc.bias")
}
"""
PARTLY_WEIGHTS: Weights = {
    "k0": (4, 3, 3, 3), "b0": (4,), "k1": (4, 4, 3, 3), "b1": (4,), "k2": (4, 4, 3, 3), **norm("bn", 4),
    "fc.weight": (5, 4), "fc.bias": (5,),
}  # fmt: skip
LINEAR = """
net (float[N,6] x) => (float[N,3] y) {
  a = Gemm <transB = 1> (x, "w0", "b0")
  b = Relu (a)
  m = MatMul (b, "w1")
  c = Add (m, "b1")
  d = Relu (c)
  y = Gemm <transB = 1> (d, "w2", "b2")
}
"""
LINEAR_WEIGHTS: Weights = {
    "w0": np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32), "b0": (8,),
    "w1": np.random.default_rng(2).normal(size=(8, 5)).astype(np.float32), "b1": (5,), "w2": (3, 5), "b2": (3,),
}  # fmt: skip
TRACKED = """
net (float[N,3,8,8] x) => (float[N,5] y)
<int64[4] flat = {1,-1,8,8}, int64[4] back = {-1,4,8,8}> {
  c = Conv <pads = [1,1,1,1]> (x, "conv.weight")
  n = Shape <start = 0, end = 1> (c)
  r = Reshape (c, flat)
  t0 = Tile ("bn.weight", n)
  t1 = Tile ("bn.bias", n)
  t2 = Tile ("bn.running_mean", n)
  t3 = Tile ("bn.running_var", n)
  b = BatchNormalization (r, t0, t1, t2, t3)
  d = Reshape (b, back)
  e = Relu (d)
  p = GlobalAveragePool (e)
  q = Flatten (p)
  y = Gemm <transB = 1> (q, "fc.weight", "fc.bias")
}
"""
TRACKED_WEIGHTS: Weights = {"conv.weight": (4, 3, 3, 3), **norm("bn", 4), "fc.weight": (5, 4), "fc.bias": (5,)}


def normal(text: str, weights: Weights, folder: Path) -> ir.Model:
    return normalise(load(saved(source(text, weights), folder)))


def census_of(text: str, weights: Weights, folder: Path) -> ModelNorms:
    return find_norms(normal(text, weights, folder))


def calibration(*sample: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((32, *sample)).astype(np.float32)


def test_folded_norms_come_back_beside_survivors(tmp_path: Path) -> None:
    census = census_of(PARTLY, PARTLY_WEIGHTS, tmp_path)
    choice = decide(census, has_calibration=True)
    assert [c.name for c in choice.inserted] == ["a", "c"] and len(choice.sites) == 1
    assert choice.because == "2 convolutions get a norm from calibration data; the file has 1 batch norm"


def test_without_samples_the_choice_names_the_way(tmp_path: Path) -> None:
    census = census_of(PARTLY, PARTLY_WEIGHTS, tmp_path)
    assert decide(census).because == (
        "the file has 1 batch norm; 2 convolutions with a bias may have lost their norm (`--calibration PATH` restores them)"
    )
    assert "`--norms insert` restores them" in decide(census, "keep", has_calibration=True).because


def test_few_convolutions_with_a_bias_are_no_folded_file(tmp_path: Path) -> None:
    """One convolution with a bias beside one batch norm, as in a detection head."""
    text = PARTLY.replace('(x, "k0", "b0")', '(x, "k0")')
    choice = decide(census_of(text, PARTLY_WEIGHTS, tmp_path), has_calibration=True)
    assert not choice.inserted and choice.because == "the file has 1 batch norm"


def test_a_whole_bundle_adapts_all_norms(tmp_path: Path) -> None:
    path = saved(source(PARTLY, PARTLY_WEIGHTS), tmp_path)
    bundle = ttac.compile(path, method="bn", batch=4, calibration=calibration(3, 8, 8), dry_run=True)
    assert len(bundle.manifest["sites"]) == 3 and bundle.manifest["verified"]["logits_off"] < 1e-5


def test_linear_layers_get_a_norm(tmp_path: Path) -> None:
    """Gemm, and MatMul and Add; the last layer stays unchanged, and the model computes the same."""
    model = normal(LINEAR, LINEAR_WEIGHTS, tmp_path)
    x = calibration(6)
    before = run(model, {"x": x})
    choice = decide(find_norms(model), has_calibration=True)
    assert [c.value.name for c in choice.inserted] == ["a", "c"]
    assert choice.because == "2 linear layers get a norm from calibration data"
    h = x @ np.asarray(LINEAR_WEIGHTS["w0"]).T + array(model, "a")
    g = np.maximum(h, 0) @ np.asarray(LINEAR_WEIGHTS["w1"]) + array(model, "c")
    sites = insert_norms(model, choice.inserted, {"a": (h.mean(0), h.var(0)), "c": (g.mean(0), g.var(0))})
    assert [site.channels for site in sites] == [8, 5]
    after = run(model, {"x": x})
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-4)
    for site, axis in zip(sites, (1, 0), strict=True):
        layer = site.x.producer()
        assert layer is not None and layer.inputs[1] is not None and layer.inputs[1].const_value is not None
        lengths = np.linalg.norm(layer.inputs[1].const_value.numpy(), axis=axis)
        np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def array(model: ir.Model, output: str) -> np.ndarray:
    node = next(node for node in model.graph if node.outputs[0].name == output)
    value = node.inputs[2]
    assert value is not None and value.const_value is not None
    return np.asarray(value.const_value.numpy())


@pytest.mark.parametrize("method", ["bn", "tent"])
def test_a_net_of_linear_layers_compiles(method: str, tmp_path: Path) -> None:
    path = saved(source(LINEAR, LINEAR_WEIGHTS), tmp_path)
    bundle = ttac.compile(path, method=method, batch=8, calibration=calibration(6), dry_run=True)
    assert len(bundle.manifest["sites"]) == 2


def test_without_samples_linear_layers_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="the file has no norm") as caught:
        decide(census_of(LINEAR, LINEAR_WEIGHTS, tmp_path))
    assert "`a`: it has a bias and no norm behind it" in str(caught.value.where)


def test_a_linear_layer_behind_convolutions_waits_for_insert(tmp_path: Path) -> None:
    """The hidden layer of a classifier has no norm in most sources; `--norms insert` gives it one."""
    text = PARTLY.replace(
        'y = Gemm <transB = 1> (q, "fc.weight", "fc.bias")',
        'h = Gemm <transB = 1> (q, "h.weight", "h.bias")\n  r = Relu (h)\n  y = Gemm <transB = 1> (r, "fc.weight", "fc.bias")',
    )
    weights = {**PARTLY_WEIGHTS, "h.weight": (4, 4), "h.bias": (4,)}
    census = census_of(text, weights, tmp_path)
    assert len(decide(census, has_calibration=True).inserted) == 2
    assert [c.value.name for c in decide(census, "insert", has_calibration=True).inserted] == ["a", "c", "h"]


def test_a_scaled_gemm_gets_no_norm(tmp_path: Path) -> None:
    census = census_of(LINEAR.replace("<transB = 1> (x", "<transB = 1, alpha = 0.5> (x"), LINEAR_WEIGHTS, tmp_path)
    assert "scaled" in {item.node.outputs[0].name: item.because for item in census.skipped}["a"]


def test_a_tracked_instance_norm_is_a_batch_norm(tmp_path: Path) -> None:
    """PyTorch's default exporter writes it on [1, N*C, H, W] with repeated parameters."""
    model = normal(TRACKED, TRACKED_WEIGHTS, tmp_path)
    assert [node.op_type for node in model.graph].count("Reshape") == 0
    (site,) = find_norms(model).sites
    assert (site.kind, site.channels, site.spatial, site.name) == ("batch", 4, 64, "bn")


@pytest.mark.parametrize("method", ["bn", "tent"])
def test_a_net_with_tracked_instance_norms_compiles(method: str, tmp_path: Path) -> None:
    path = saved(source(TRACKED, TRACKED_WEIGHTS), tmp_path)
    bundle = ttac.compile(path, method=method, batch=4, calibration=calibration(3, 8, 8), dry_run=True)
    assert [site["name"] for site in bundle.manifest["sites"]] == ["bn"]
