"""Norms of every kind in every spelling: recognised, written as one operator, trained as PyTorch trains them."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.numpy_helper import to_array

import ttac
from tests.support.source_models import Weights, saved, source
from tests.support.tiny_bundles import read
from ttac.errors import UnsupportedError
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.norm_sites import NormSite, find_norms

TAIL = 'p = GlobalAveragePool (h) f = Flatten (p) y = Gemm <transB = 1> (f, "fc.weight")'
IMAGE = 'net (float[N,3,4,4] x) => (float[N,5] y) { c = Conv (x, "conv.weight") %s %s }'
TOKENS = """net (float[N,3,4] x) => (float[N,5] y) {
  t = MatMul (x, "in.weight") %s
  w = Mul (h, h) f = ReduceMean <keepdims = 0> (w, one) y = Gemm <transB = 1> (f, "fc.weight")
}"""
AXES: Weights = {"last": np.array([-1]), "one": np.array([1]), "eps": np.array(1e-5, np.float32)}
NUMBERS: Weights = {"two": np.array(2, np.float32), "unit": np.array(1, np.float32)}

CENTRED = "m = ReduceMean (t, last) d = Sub (t, m) "
ROOT = "v = ReduceMean (q, last) e = Add (v, eps) s = Sqrt (e) "
SPLIT: Weights = {"apart": np.array([0, 4, 4, 2, 4]), "joined": np.array([0, 4, 4, 8]), "rest": np.array([1, 2, 4])}
GROUPS = (
    "g = Reshape (z, apart) m = ReduceMean (g, rest) d = Sub (g, m) q = Mul (d, d) v = ReduceMean (q, rest) "
    'e = Add (v, eps) s = Sqrt (e) r = Reciprocal (s) k = Mul (r, "gn.weight") i = Neg (m) b = Mul (i, k) '
    'o = Add (b, "gn.bias") a = Mul (g, k) j = Add (a, o) l = Reshape (j, joined) '
)
SPELLINGS: dict[str, tuple[str, str, Weights]] = {
    "layer, torch": (
        TOKENS
        % (CENTRED + "q = Pow (d, two) " + ROOT + 'n = Div (d, s) g = Mul (n, "ln.weight") h = Add (g, "ln.bias")'),
        "layer",
        {"ln.weight": (8,), "ln.bias": (8,)},
    ),
    "layer, operands swapped": (
        TOKENS
        % (CENTRED + "q = Mul (d, d) " + ROOT + 'r = Reciprocal (s) n = Mul (r, d) g = Mul ("ln.weight", n) '
           'h = Add ("ln.bias", g)'),
        "layer",
        {"ln.weight": (1, 1, 8), "ln.bias": (8,)},
    ),
    "layer, subtracted twice": (
        TOKENS % (CENTRED + "d2 = Sub (t, m) q = Mul (d2, d2) " + ROOT + "h = Div (d, s)"), "layer", {},
    ),
    "layer, scale only": (
        TOKENS % (CENTRED + "q = Mul (d, d) " + ROOT + 'n = Div (d, s) h = Mul (n, "ln.weight")'),
        "layer",
        {"ln.weight": (8,)},
    ),
    "layer, TensorFlow": (
        TOKENS
        % (CENTRED + "q = Mul (d, d) " + ROOT + 'r = Reciprocal (s) k = Mul (r, "ln.weight") a = Mul (t, k) '
           'b = Mul (m, k) o = Sub ("ln.bias", b) h = Add (a, o)'),
        "layer",
        {"ln.weight": (8,), "ln.bias": (8,)},
    ),
    "layer, Keras": (
        TOKENS
        % (CENTRED + "q = Mul (d, d) " + ROOT + 'r = Reciprocal (s) k = Mul (r, "ln.weight") i = Neg (m) b = Mul (i, k) '
           'o = Add (b, "ln.bias") a = Mul (t, k) h = Add (a, o)'),
        "layer",
        {"ln.weight": (1, 1, 8), "ln.bias": (8,)},
    ),
    "layer, Keras, without affine": (
        TOKENS
        % (CENTRED + "q = Mul (d, d) " + ROOT + "r = Reciprocal (s) i = Neg (m) b = Mul (i, r) a = Mul (t, r) "
           "h = Add (b, a)"),
        "layer", {},
    ),
    "layer, Keras, scale only, subtracted": (
        TOKENS
        % (CENTRED + "q = Mul (d, d) " + ROOT + 'r = Reciprocal (s) k = Mul ("ln.weight", r) a = Mul (k, t) '
           "b = Mul (m, k) h = Sub (a, b)"),
        "layer",
        {"ln.weight": (8,)},
    ),
    "layer, Keras, means as pools": (
        TOKENS
        % ("m = GlobalAveragePool (t) d = Sub (t, m) q = Mul (d, d) v = GlobalAveragePool (q) e = Add (v, eps) "
           's = Sqrt (e) r = Reciprocal (s) k = Mul (r, "ln.weight") i = Neg (m) b = Mul (i, k) o = Add ("ln.bias", b) '
           "a = Mul (t, k) h = Add (a, o)"),
        "layer",
        {"ln.weight": (8,), "ln.bias": (8,)},
    ),
    "rms, Keras": (
        TOKENS % ("q = Mul (t, t) " + ROOT + 'r = Reciprocal (s) k = Mul (r, "rms.weight") h = Mul (t, k)'),
        "rms",
        {"rms.weight": (8,)},
    ),
    "layer over channels, Keras": (
        IMAGE
        % ("m = ReduceMean (c, one) w = Reshape (m, same) d = Sub (c, w) q = Mul (d, d) v = ReduceMean (q, one) "
           'e = Add (v, eps) s = Sqrt (e) r = Reciprocal (s) k = Mul (r, "ln.weight") i = Neg (m) b = Mul (i, k) '
           'o = Add (b, "ln.bias") a = Mul (c, k) h = Add (a, o)', TAIL),
        "layer",
        {"ln.weight": (1, 8, 1, 1), "ln.bias": (1, 8, 1, 1), "same": np.array([-1, 1, 4, 4])},
    ),
    "group, Keras": (
        IMAGE % ("z = Transpose <perm = [0, 2, 3, 1]> (c) " + GROUPS + "h = Transpose <perm = [0, 3, 1, 2]> (l)", TAIL),
        "group",
        {"gn.weight": (1, 1, 1, 2, 4), "gn.bias": (1, 1, 1, 2, 4), **SPLIT},
    ),
    "group, Keras, channels last": (
        IMAGE % ("z0 = Transpose <perm = [0, 2, 3, 1]> (c) z = Relu (z0) " + GROUPS
                 + "u = Sigmoid (l) h = Transpose <perm = [0, 3, 1, 2]> (u)", TAIL),
        "group",
        {"gn.weight": (1, 1, 1, 2, 4), "gn.bias": (1, 1, 1, 2, 4), **SPLIT},
    ),
    "layer, whole, without affine": (
        TOKENS % "h = LayerNormalization (t, ones)", "layer", {"ones": np.ones(8, np.float32)},
    ),
    "rms": (
        TOKENS % ("q = Pow (t, two) " + ROOT + 'r = Div (unit, s) n = Mul (t, r) h = Mul ("rms.weight", n)'),
        "rms",
        {"rms.weight": (8,)},
    ),
    "rms, without affine": (TOKENS % ("q = Mul (t, t) " + ROOT + "h = Div (t, s)"), "rms", {}),
    "layer over channels": (
        IMAGE
        % ("m = ReduceMean (c, one) d = Sub (c, m) q = Pow (d, two) v = ReduceMean (q, one) e = Add (v, eps) "
           's = Sqrt (e) n = Div (d, s) g = Mul ("ln.weight", n) h = Add (g, "ln.bias")', TAIL),
        "layer",
        {"ln.weight": (8, 1, 1), "ln.bias": (8, 1, 1)},
    ),
    "instance, written out": (
        IMAGE
        % ("m = ReduceMean (c, space) d = Sub (c, m) q = Mul (d, d) v = ReduceMean (q, space) e = Add (v, eps) "
           's = Sqrt (e) n = Div (d, s) g = Mul (n, "in.weight") h = Add (g, "in.bias")', TAIL),
        "instance",
        {"in.weight": (8, 1, 1), "in.bias": (8, 1, 1), "space": np.array([2, 3])},
    ),
    "filter response": (
        IMAGE
        % ("q = Mul (c, c) v = ReduceMean (q, space) e = Add (v, eps) s = Sqrt (e) r = Div (unit, s) "
           "k = Shape (c) w = Expand (r, k) n = Mul (c, w) "
           'g = Mul (n, "frn.weight") h = Add (g, "frn.bias")', TAIL),
        "rms",
        {"frn.weight": (1, 8, 1, 1), "frn.bias": (1, 8, 1, 1), "space": np.array([2, 3])},
    ),
    "rms over channels": (
        IMAGE
        % ("q = Pow (c, two) v = ReduceMean (q, one) e = Add (v, eps) s = Sqrt (e) r = Reciprocal (s) n = Mul (c, r) "
           'h = Mul (n, "rms.weight")', TAIL),
        "rms",
        {"rms.weight": (1, 8, 1, 1)},
    ),
    "group, no bias but zero": (
        IMAGE
        % ('a = Reshape (c, apart) n = InstanceNormalization (a, ones, zeros) b = Reshape (n, together) '
           'g = Mul (b, "gn.weight") h = Add (g, nothing)', TAIL),
        "group",
        {"apart": np.array([0, 2, -1]), "together": np.array([0, 8, 4, 4]), "ones": np.ones(2, np.float32),
         "zeros": np.zeros(2, np.float32), "gn.weight": (8, 1, 1), "nothing": np.zeros((1, 1, 1), np.float32)},
    ),
    "group, spelled out": (
        IMAGE
        % ('a = Reshape (c, apart) n = InstanceNormalization (a, ones, zeros) b = Reshape (n, together) '
           'g = Mul (b, "gn.weight") h = Add (g, "gn.bias")', TAIL),
        "group",
        {"apart": np.array([0, 2, -1]), "together": np.array([0, 8, 4, 4]), "ones": np.ones(2, np.float32),
         "zeros": np.zeros(2, np.float32), "gn.weight": (8, 1, 1), "gn.bias": (1, 8, 1, 1)},
    ),
    "group, without affine": (
        IMAGE
        % ("a = Reshape (c, apart) n = InstanceNormalization (a, ones, zeros) h = Reshape (n, together)", TAIL),
        "group",
        {"apart": np.array([0, 2, -1]), "together": np.array([0, 8, 4, 4]), "ones": np.ones(2, np.float32),
         "zeros": np.zeros(2, np.float32)},
    ),
    "group, per group": (
        IMAGE % ('h = GroupNormalization <num_groups = 2> (c, "gn.weight", "gn.bias")', TAIL),
        "group",
        {"gn.weight": (2,), "gn.bias": (2,)},
    ),
    "group, per channel, opset 21": (
        IMAGE % ('h = GroupNormalization <num_groups = 2> (c, "gn.weight", "gn.bias")', TAIL),
        "group",
        {"gn.weight": (8,), "gn.bias": (8,)},
    ),
    "instance": (
        IMAGE % ('h = InstanceNormalization (c, "in.weight", "in.bias")', TAIL), "instance",
        {"in.weight": (8,), "in.bias": (8,)},
    ),
    "batch norm as a scale and a shift": (
        IMAGE % ('r = Relu (c) g = Mul (r, "bn.weight") h = Add (g, "bn.bias")', TAIL), "affine",
        {"bn.weight": (1, 8, 1, 1), "bn.bias": (1, 8, 1, 1)},
    ),
}  # fmt: skip


def model_of(spelling: str) -> onnx.ModelProto:
    text, _, weights = SPELLINGS[spelling]
    image = "conv.weight" in text
    common: Weights = {"fc.weight": (5, 8), **({"conv.weight": (8, 3, 1, 1)} if image else {})}
    if not image:
        common["in.weight"] = np.random.default_rng(7).standard_normal((4, 8)).astype(np.float32)
    words = set(text.replace(",", " ").replace("(", " ").replace(")", " ").split())
    used = {name: value for name, value in {**AXES, **NUMBERS}.items() if name in words}
    return source(text, {**common, **used, **weights}, opset=21 if spelling.endswith("opset 21") else 18)


def site_in(model: ir.Model) -> NormSite:
    found = find_norms(model)
    assert not found.near_misses, found.near_misses
    (site,) = found.sites
    return site


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling_is_recognised_and_trained(spelling: str, tmp_path: Path) -> None:
    """`normalise` compares the numbers with the file's, `compile` the gradients with derivatives of the loss."""
    path = saved(model_of(spelling), tmp_path)
    site = site_in(normalise(load(path), simplifier=None))
    assert site.kind == SPELLINGS[spelling][1]
    assert ("rms" in spelling) == (site.bias is None) or spelling == "layer, scale only"
    weights = [name for name in SPELLINGS[spelling][2] if name.endswith(".weight")]
    for name in weights:
        array = next(to_array(tensor) for tensor in model_of(spelling).graph.initializer if tensor.name == name)
        np.testing.assert_array_equal(site.scale.reshape(-1), array.reshape(-1))
    ttac.compile(path, method="tent", batch=4, output=tmp_path / "x.ttac")


def test_what_is_no_norm_has_a_reason(tmp_path: Path) -> None:
    text = TOKENS % ("m = ReduceMean (t, last) d = Sub (t, m) q = Mul (t, t) " + ROOT + "h = Div (d, s)")
    axes = {"last": np.array([-1]), "one": np.array([1]), "eps": np.array(1e-5, np.float32)}
    model = source(text, {"in.weight": (4, 8), "fc.weight": (5, 8), **axes})
    (miss,) = find_norms(normalise(load(saved(model, tmp_path)), simplifier=None)).near_misses
    assert miss.because == "its numerator is not the value whose variance it divides by"
    with pytest.raises(UnsupportedError, match="nothing that is quite a norm") as caught:
        ttac.compile(tmp_path / "model.onnx", method="tent", output=tmp_path / "x.ttac")
    assert caught.value.exit_code == 3 and "its numerator" in str(caught.value)


def test_statistics_do_not_fit_a_model_without_batch_norms(tmp_path: Path) -> None:
    path = saved(model_of("instance"), tmp_path)
    with pytest.raises(UnsupportedError, match="`bn` adapts the statistics of batch norms") as caught:
        ttac.compile(path, method="bn", output=tmp_path / "x.ttac")
    assert caught.value.exit_code == 3 and all(f"`{name}`" in caught.value.hint for name in ("eata", "sar", "tent"))


def test_statistics_apply_to_the_batch_norms_of_a_mixed_model(tmp_path: Path) -> None:
    body = 'n = BatchNormalization (c, "bn.w", "bn.b", "bn.m", "bn.v") h = InstanceNormalization (n, "in.w", "in.b")'
    weights: Weights = {name: (8,) for name in ("bn.w", "bn.b", "bn.m", "bn.v", "in.w", "in.b")}
    model = source(IMAGE % (body, TAIL), {"conv.weight": (8, 3, 1, 1), "fc.weight": (5, 8), **weights})
    path = saved(model, tmp_path)
    for method, kinds in (("tent", ["batch", "sample"]), ("bn", ["batch"])):
        ttac.compile(path, method=method, batch=4, output=tmp_path / f"{method}.ttac")
        assert [site["statistics"] for site in read(tmp_path / f"{method}.ttac")["sites"]] == kinds


def _network() -> Any:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Everything(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
            self.bn, self.gn, self.inst = nn.BatchNorm2d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)
            self.ln, self.wide = nn.LayerNorm(8), nn.LayerNorm((16, 8))

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.bn(self.conv(x)))
            x = torch.tanh(self.gn(x) + self.inst(x))
            x = self.ln(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            x = self.wide(torch.tanh(x).flatten(2).transpose(1, 2))
            return self.fc(x.square().mean(1))

    torch.manual_seed(3)
    net = Everything().eval()
    for name, value in net.named_parameters():
        if value.ndim == 1 and "conv" not in name and "fc" not in name:
            nn.init.uniform_(value, 0.5, 1.5)
    nn.init.normal_(net.fc.weight)
    return net


def _export(net: Any, path: Path, opset: int, dynamo: bool) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    x = torch.randn(2, 3, 4, 4)
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["logits"], "opset_version": opset}
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        if dynamo:
            free = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(net, (x,), dynamo=True, optimize=False, dynamic_shapes=free, **names).save(str(path))
        else:
            training = torch.onnx.TrainingMode.PRESERVE
            torch.onnx.export(
                net, (x,), str(path), dynamo=False, training=training, do_constant_folding=False,
                dynamic_axes={"x": {0: "batch"}}, **names,
            )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "dynamo"), [(13, False), (17, False), (18, True)])
def test_five_steps_equal_pytorch(opset: int, dynamo: bool, tmp_path: Path) -> None:
    """TENT on one net with five kinds of norms, as exporters write them."""
    torch = pytest.importorskip("torch")
    from benchmarks.pytorch_peers import Tent

    net = _network()
    _export(copy.deepcopy(net), tmp_path / "model.onnx", opset, dynamo)
    ttac.compile(
        tmp_path / "model.onnx", method="tent", batch=8, output=tmp_path / "x.ttac",
        settings={"optimizer": "sgd", "lr": 0.05, "guard": "off"},
    )  # fmt: skip
    adapter = ttac.load(tmp_path / "x.ttac", threads=1)
    peer = Tent(net, lambda tensors: torch.optim.SGD(tensors, lr=0.05, momentum=0.9))
    random = np.random.RandomState(0)
    for _ in range(5):
        x = random.standard_normal((8, 3, 4, 4)).astype(np.float32)
        np.testing.assert_allclose(adapter.step(x), peer.step(torch.from_numpy(x)).numpy(), atol=1e-4)
    assert {site["kind"] for site in read(tmp_path / "x.ttac")["sites"]} == {"batch", "group", "instance", "layer"}
    assert len(read(tmp_path / "x.ttac")["sites"]) == 5
