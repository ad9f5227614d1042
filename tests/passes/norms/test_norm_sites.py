"""Norms recognised and nearly recognised, and the decision about folded norms."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.source_models import Weights, norm, run, saved, source
from ttac.errors import UnsupportedError, UsageError
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.norm_choice import decide
from ttac.passes.norms.norm_sites import ModelNorms, find_norms, site_of
from ttac.passes.norms.selectors import sites_by_name

FOLDED = """
net (float[N,3,8,8] x) => (float[N,5] y) {
  ["/conv/Conv"] c = Conv <pads = [1,1,1,1]> (x, "onnx::Conv_17", "onnx::Conv_18")
  r = Relu (c)
  ["/pw/Conv"] e = Conv (r, "pw.weight", "pw.bias")
  p = GlobalAveragePool (e)
  ["/se/Conv"] s = Conv (p, "se.weight", "se.bias")
  g = Sigmoid (s)
  m = Mul (e, g)
  ["/free/Conv"] w = Conv (m, "free.weight")
  q = GlobalAveragePool (w)
  f = Flatten (q)
  y = Gemm <transB = 1> (f, "fc.weight", "fc.bias")
}
"""
FOLDED_WEIGHTS: Weights = {
    "onnx::Conv_17": (4, 3, 3, 3), "onnx::Conv_18": (4,), "pw.weight": (4, 4, 1, 1), "pw.bias": (4,),
    "se.weight": (4, 4, 1, 1), "se.bias": (4,), "free.weight": (4, 4, 1, 1), "fc.weight": (5, 4), "fc.bias": (5,),
}  # fmt: skip


def normal(model: onnx.ModelProto, folder: Path) -> ir.Model:
    return normalise(load(saved(model, folder)), simplifier=None)


def found(text: str, weights: Weights, folder: Path) -> ModelNorms:
    return find_norms(normal(source(text, weights), folder))


def test_a_batch_norm_is_a_site(tmp_path: Path) -> None:
    model = normal(source(), tmp_path)
    all_found = find_norms(model)
    (site,) = all_found.sites
    assert (site.name, site.kind, site.channels, site.spatial, site.inserted) == ("bn", "batch", 4, 64, False)
    assert site.x.name == "c" and site.y.name == "b" and site.node.op_type == "BatchNormalization"
    assert site.eps == pytest.approx(1e-5)
    for name, array in (
        ("weight", site.scale),
        ("bias", site.bias),
        ("running_mean", site.mean),
        ("running_var", site.var),
    ):
        tensor = model.graph.initializers[f"bn.{name}"].const_value
        assert tensor is not None and array.dtype == np.float32
        np.testing.assert_array_equal(array, tensor.numpy())
    assert all_found.summary == "1 batch" and not all_found.folded and not all_found.near_misses


@pytest.mark.parametrize(("shape", "spatial"), [("N,4", 1), ("N,4,7", 7), ("N,4,2,3", 6), ("N,4,2,3,5", 30)])
def test_any_number_of_spatial_axes(tmp_path: Path, shape: str, spatial: int) -> None:
    text = f"net (float[{shape}] x) => (float[{shape}] y) {{ y = BatchNormalization <epsilon = 0.5> (x, s, b, b, s) }}"
    (site,) = found(text, {"s": (4,), "b": (4,)}, tmp_path).sites
    assert site.spatial == spatial and site.eps == 0.5


def test_a_batch_norm_of_tokens_side_by_side_sees_them_all(tmp_path: Path) -> None:
    """LeViT: a norm of [N*tokens, C] between two Reshapes has as many elements a sample and channel as tokens."""
    text = """net (float[1,6,4] x) => (float[1,24] y) {
      a = Reshape (x, rows) b = BatchNormalization (a, s, b0, b0, s) c = Reshape (b, back) y = Flatten (c)
    }"""
    weights: Weights = {"s": (4,), "b0": (4,), "rows": np.array([6, 4]), "back": np.array([1, 6, 4])}
    (site,) = found(text, weights, tmp_path).sites
    assert (site.channels, site.spatial) == (4, 6)


NEAR_MISSES = [
    (
        "g = ReduceMean <keepdims = 0> (x, axes) y = BatchNormalization (x, g, b, b, s)",
        "`g` is computed, so it cannot be a norm's scale",
    ),
    (
        "t = Transpose <perm = [1,0,2]> (x) u = BatchNormalization (t, s, b, b, s) y = Transpose <perm = [1,0,2]> (u)",
        "its input `t` is not [N, C, ...]",
    ),
    ("y = BatchNormalization (x, s, b, b, bad)", "a variance is negative"),
    ("y = BatchNormalization (x, s, nan, b, s)", "not finite"),
]


@pytest.mark.parametrize(("body", "reason"), NEAR_MISSES)
def test_near_misses_have_a_reason(tmp_path: Path, body: str, reason: str) -> None:
    text = f"net (float[N,4,4] x) => (float[N,4,4] y) {{ {body} }}"
    weights: Weights = {
        "s": (4,), "b": (4,), "axes": np.array([0, 2]), "bad": -np.ones(4, np.float32),
        "nan": np.full(4, np.nan, np.float32),
    }  # fmt: skip
    model = source(text, weights)
    for tensor in [t for t in model.graph.initializer if t.name not in body]:
        model.graph.initializer.remove(tensor)
    bare = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    missed = find_norms(bare)
    assert not missed.sites and [reason in miss.because for miss in missed.near_misses] == [True], missed.near_misses
    with pytest.raises(UnsupportedError, match="cannot be adapted"):
        site_of(missed.near_misses[0].node, "bn")


def test_an_input_of_unknown_shape_is_a_near_miss() -> None:
    parameters = [ir.val(name, const_value=ir.tensor(np.ones(4, np.float32))) for name in "sbmv"]
    x = ir.val("x", dtype=ir.DataType.FLOAT)
    node = ir.node("BatchNormalization", [x, *parameters], name="bn")
    model = ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18}), ir_version=8)
    (miss,) = find_norms(model).near_misses
    assert miss.because == "its input `x` is not [N, C, ...]"


def test_norms_in_pieces_are_near_misses(tmp_path: Path) -> None:
    text = """
    net (float[N,4,4,4] x) => (float[N,4,4,4] y) {
      scaled = Mul (x, gain)
      [affine] a = Add (scaled, shift)
      m = ReduceMean (a, axes)
      d = Sub (a, m)
      sq = Mul (d, d)
      v = ReduceMean (sq, others)
      e = Add (v, eps)
      s = Sqrt (e)
      [divide] y = Div (d, s)
    }"""
    weights: Weights = {
        "gain": (1, 4, 1, 1), "shift": (4, 1, 1), "axes": np.array([-1]), "others": np.array([-2]),
        "eps": np.array(1e-5, np.float32),
    }  # fmt: skip
    misses = found(text, weights, tmp_path).near_misses
    assert [miss.node.name for miss in misses] == ["affine", "divide"]
    assert "it may prepare the input" in misses[0].because and "different axes" in misses[1].because
    with pytest.raises(UnsupportedError, match="nothing that is quite a norm"):
        decide(found(text, weights, tmp_path))


def test_folded_norms_are_distinguished_from_biases(tmp_path: Path) -> None:
    """The exporter's marks decide; where there are none, any bias may be a folded norm."""
    marked = found(FOLDED, FOLDED_WEIGHTS, tmp_path)
    assert [(c.name, c.value.name) for c in marked.folded] == [("conv", "c")]
    assert "renamed its kernel and bias" in marked.folded[0].because
    reasons = {miss.name: miss.because for miss in marked.skipped}
    assert reasons["pw"].startswith("it kept its own bias") and reasons["free"].startswith("it has no bias")
    assert reasons["se"].startswith("it gives one value per channel")
    text = FOLDED.replace("onnx::Conv_17", "conv.weight").replace("onnx::Conv_18", "conv.bias")
    weights = {**FOLDED_WEIGHTS, "conv.weight": (4, 3, 3, 3), "conv.bias": (4,)}
    weights = {name: given for name, given in weights.items() if "onnx" not in name}
    plain = found(text, weights, tmp_path)
    assert [c.name for c in plain.folded] == ["conv", "pw"] and plain.summary == "none, 2 folded"
    assert plain.folded[0].because == "it has a bias and no norm behind it"


def test_the_last_layer_and_a_normed_one_get_no_norm(tmp_path: Path) -> None:
    text = """
    net (float[N,3,8,8] x) => (float[N,5,16,16] y) {
      ["/a/Conv"] a = Conv (x, "a.weight", "a.bias")
      n = BatchNormalization (a, "n.weight", "n.bias", "n.running_mean", "n.running_var")
      ["/up/ConvTranspose"] u = ConvTranspose (n, "up.weight", "up.bias")
      r = Relu (u)
      ["/last/Conv"] l = Conv (r, "last.weight", "last.bias")
      y = Resize (l, , , sizes)
    }"""
    weights: Weights = {
        **norm("n", 4), "a.weight": (4, 3, 1, 1), "a.bias": (4,), "up.weight": (4, 4, 1, 1), "up.bias": (4,),
        "last.weight": (5, 4, 1, 1), "last.bias": (5,), "sizes": np.array([1, 5, 16, 16]),
    }  # fmt: skip
    model = source(text.replace("[N,3", "[1,3").replace("[N,5", "[1,5"), weights)
    all_found = find_norms(normal(model, tmp_path))
    assert [candidate.name for candidate in all_found.folded] == ["up"]
    reasons = {miss.name: miss.because for miss in all_found.skipped}
    assert reasons["a"] == "followed by `n`" and reasons["last"].startswith("only operators without parameters")


def test_the_decision_has_a_reason(tmp_path: Path) -> None:
    kept, lost = find_norms(normal(source(), tmp_path)), found(FOLDED, FOLDED_WEIGHTS, tmp_path)
    for norms in ("auto", "keep", "insert"):
        decision = decide(kept, norms)
        assert [site.name for site in decision.sites] == ["bn"] and not decision.inserted
        assert decision.because == "the file has 1 batch norm"
    repaired = decide(lost, "auto", has_calibration=True)
    assert [candidate.name for candidate in repaired.inserted] == ["conv"] and not repaired.sites
    assert repaired.because == "1 convolution gets a norm from calibration data"


@pytest.mark.parametrize(
    ("norms", "calibrated", "what"),
    [
        ("auto", False, "the exporter folded 1 norm into convolutions: without calibration data"),
        ("insert", False, "`--norms insert` needs calibration data for 1 convolution"),
        ("keep", False, "`--norms keep` restores none"),
        ("keep", True, "`--norms keep` restores none"),
    ],
)
def test_a_refusal_names_both_ways_out(tmp_path: Path, norms: str, calibrated: bool, what: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        decide(found(FOLDED, FOLDED_WEIGHTS, tmp_path), norms, has_calibration=calibrated)
    text = str(caught.value)
    assert what in text and "`conv`: the exporter renamed" in text and caught.value.exit_code == 3
    assert "--calibration PATH" in text and "dynamo=True, optimize=False" in text
    assert "training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False" in text


def test_a_refusal_names_the_norms_that_could_adapt_alone(tmp_path: Path) -> None:
    """As in MobileViTv2: its batch norms were folded, its group norms were not."""
    text = FOLDED.replace(
        "q = GlobalAveragePool (w)", "b = InstanceNormalization (w, gain, shift) q = GlobalAveragePool (b)"
    )
    mixed = found(text, {**FOLDED_WEIGHTS, "gain": (4,), "shift": (4,)}, tmp_path)
    with pytest.raises(UnsupportedError) as caught:
        decide(mixed)
    assert "`--calibration PATH`, or adapt the 1 instance norm alone, `--norms keep`, or with" in str(caught.value.hint)
    assert [site.kind for site in decide(mixed, "keep").sites] == ["instance"]
    with pytest.raises(UnsupportedError) as caught:
        decide(found(FOLDED, FOLDED_WEIGHTS, tmp_path))
    assert "`--norms keep`" not in str(caught.value.hint)


def test_a_partly_folded_file_is_repaired_with_samples(tmp_path: Path) -> None:
    """The exporter folds norms behind convolutions only: those behind linear layers stay, one of forty in LeViT."""
    text = FOLDED.replace(
        "q = GlobalAveragePool (w)", "b = BatchNormalization (w, gain, shift, shift, gain) q = GlobalAveragePool (b)"
    )
    mixed = found(text, {**FOLDED_WEIGHTS, "gain": (4,), "shift": (4,)}, tmp_path)
    repaired = decide(mixed, "auto", has_calibration=True)
    assert len(repaired.sites) == 1 and [candidate.name for candidate in repaired.inserted] == ["conv"]
    decision = decide(mixed, "auto")
    assert len(decision.sites) == 1 and not decision.inserted
    assert decision.because == (
        "the file has 1 batch norm; 1 more was folded by the exporter (`--norms insert` restores them)"
    )
    assert len(decide(mixed, "insert", has_calibration=True).inserted) == 1


def test_nothing_to_adapt(tmp_path: Path) -> None:
    text = "net (float[N,4] x) => (float[N,5] y) { y = Gemm <transB = 1> (x, w) }"
    with pytest.raises(UnsupportedError, match="no norm and no convolution"):
        decide(found(text, {"w": (5, 4)}, tmp_path), has_calibration=True)


def test_marked_convolutions_are_repaired_beside_layer_norms(tmp_path: Path) -> None:
    """Without marks a bias in front of layer norms is a patch embedding, and stays."""
    text = FOLDED.replace("f = Flatten (q)", "h = Flatten (q) f = LayerNormalization (h, gain, gain)")
    marked = found(text, {**FOLDED_WEIGHTS, "gain": (4,)}, tmp_path)
    assert [site.kind for site in marked.sites] == ["layer"] and len(
        decide(marked, "auto", has_calibration=True).inserted
    ) == 1


def _sites(*names: str) -> list[Any]:
    class Site:
        def __init__(self, name: str) -> None:
            self.name = name

    return [Site(name) for name in names]


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        ("norms", ["bn1", "layer1.0.bn1", "layer1.0.bn2", "layer2.0.bn1"]),
        ("bn1", ["bn1"]),
        ("*.bn1", ["layer1.0.bn1", "layer2.0.bn1"]),
        ("layer1", ["layer1.0.bn1", "layer1.0.bn2"]),
        ("layer2, layer1.*.bn2", ["layer1.0.bn2", "layer2.0.bn1"]),
    ],
)
def test_a_selector_names_sites_patterns_or_modules(selector: str, chosen: list[str]) -> None:
    sites = _sites("bn1", "layer1.0.bn1", "layer1.0.bn2", "layer2.0.bn1")
    assert [site.name for site in sites_by_name(sites, selector)] == chosen


@pytest.mark.parametrize(
    ("selector", "near"), [("layer3", "layer2"), ("bn1,layer1.0.bn9", "layer1.0.bn1"), ("", "bn1")]
)
def test_an_unknown_pattern_names_the_nearest(selector: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        sites_by_name(_sites("bn1", "layer1.0.bn1", "layer2.0.bn1"), selector)
    assert near in caught.value.hint and "fits no norm site" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["legacy", "legacy kept", "dynamo", "dynamo kept"])
def test_torch_exports(tmp_path: Path, kind: str) -> None:
    """Both exporters of PyTorch, folding and not: the same names, and the folded norms are known."""
    torch: Any = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    network = nn.Sequential(
        block, nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    network.eval()
    x, path = torch.randn(2, 3, 8, 8), tmp_path / "model.onnx"
    options: dict[str, dict[str, Any]] = {
        "legacy": {"dynamo": False, "opset_version": 17},
        "legacy kept": {"dynamo": False, "training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False},
        "dynamo": {"dynamo": True, "verbose": False},
        "dynamo kept": {"dynamo": True, "optimize": False, "verbose": False},
    }
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (x,), str(path), **options[kind])
    model = normalise(load(path))
    all_found = find_norms(model)
    sites = [site.name for site in all_found.sites]
    folded = [candidate.name for candidate in all_found.folded]
    assert sites == (["0.1", "2"] if "kept" in kind else [])
    assert folded == {"legacy": ["0.0", "1"], "dynamo": ["0.1", "2"]}.get(kind, [])
    np.testing.assert_allclose(run(model, x.numpy()), network(x).detach().numpy(), atol=1e-5)
