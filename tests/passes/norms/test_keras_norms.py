"""Batch norms as TensorFlow leaves them, folded or as a scale and a shift: recognised by their names, completed, trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from safetensors.numpy import load_file

import ttac
from tests.support.source_models import Weights, run, saved, source
from tests.support.structures import restore
from tests.support.tiny_bundles import read
from tests.support.whole_models import compiled, state_of
from ttac.errors import UnsupportedError
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.norm_sites import ModelNorms, find_norms

ROLES = {"gamma": ".scale", "scale": ".scale", "beta": ".bias"}
GOLDEN, MATRIX = (Path(__file__).resolve().parents[2] / folder for folder in ("golden", "matrix"))
FOLDED = '"net/bn_1/batchnorm/sub:0"'
DEPTHWISE = """
net (float[N,6,6,3] x) => (float[N,5] y) {
  t = Transpose <perm = [0, 3, 1, 2]> (x)
  ["Conv__7"] c = Conv <pads = [1,1,1,1]> (t, "net/conv_1/convolution/merged_input:0", "net/bn_1/batchnorm/sub:0")
  r = Relu (c)
  ["net/dw_1/depthwise"] d = Conv <pads = [1,1,1,1], group = 8> (r, "const_fold__3")
  ["net/dw_bn_1/batchnorm/mul_1"] m = Mul (d, "net/dw_bn_1/batchnorm/mul:0")
  ["net/dw_bn_1/batchnorm/add_1"] a = Add (m, "const_fold__4")
  s = Relu (a)
  p = GlobalAveragePool (s)
  f = Flatten (p)
  g = MatMul (f, "net/dense_1/kernel")
  y = Add (g, "net/dense_1/bias")
}
"""
WEIGHTS: Weights = {
    "net/conv_1/convolution/merged_input:0": (8, 3, 3, 3), "net/bn_1/batchnorm/sub:0": (8,),
    "const_fold__3": (8, 1, 3, 3), "net/dw_bn_1/batchnorm/mul:0": (1, 8, 1, 1), "const_fold__4": (1, 8, 1, 1),
    "net/dense_1/kernel": (8, 5), "net/dense_1/bias": (1, 5),
}  # fmt: skip
TABLE = """
net (float[N,%s6] x) => (float[N,%s4] y) {
  g = MatMul (x, w)
  h = Add (g, b)
  ["net/bn_1/batchnorm/mul_1"] m = Mul (h, scale)
  ["net/bn_1/batchnorm/add_1"] a = Add (m, shift)
  r = Relu (a)
  o = MatMul (r, v)
  y = Add (o, h)
}
"""
ROWS: Weights = {"w": (6, 4), "b": (4,), "scale": (4,), "shift": (4,), "v": (4, 4)}


def normal(model: onnx.ModelProto, folder: Path) -> ir.Model:
    return normalise(load(saved(model, folder)), simplifier=None)


def found(text: str, weights: Weights, folder: Path) -> ModelNorms:
    return find_norms(normal(source(text, weights), folder))


def images(count: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 6, 6, 3), dtype=np.float32)


def test_folded_norms_have_the_names_that_tensorflow_left(tmp_path: Path) -> None:
    norms = found(DEPTHWISE, WEIGHTS, tmp_path)
    assert {row.name: row.because for row in norms.folded} == {
        "net.bn_1": "the exporter folded `net.bn_1` into it",
        "net.dw_bn_1": "the exporter left the scale and shift of `net.dw_bn_1`",
    }
    assert [(site.name, site.kind) for site in norms.sites] == [("net.dw_bn_1", "affine")]


@pytest.mark.slow
def test_the_simplifier_does_not_fold_what_is_left_of_a_norm(tmp_path: Path) -> None:
    text = (
        DEPTHWISE.replace('(r, "const_fold__3")', '(r0, "const_fold__3")')
        .replace('  ["net/dw_1/depthwise"]', '  r0 = Pad (r, pads)\n  ["net/dw_1/depthwise"]')
        .replace("d = Conv <pads = [1,1,1,1], ", "d = Conv <")
    )
    weights = {**WEIGHTS, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    norms = find_norms(normalise(load(saved(source(text, weights), tmp_path))))
    assert [row.name for row in norms.folded] == ["net.bn_1", "net.dw_bn_1"]


def test_calibration_completes_them_and_keeps_the_source(tmp_path: Path) -> None:
    path, x = saved(source(DEPTHWISE, WEIGHTS), tmp_path), images()
    bundle = compiled(path, tmp_path, method="bn", batch=64, calibration=x)
    sites = read(bundle)["sites"]
    assert [(site["name"], site["kind"], site["inserted"]) for site in sites] == [
        ("net.bn_1", "batch", True), ("net.dw_bn_1", "batch", True),
    ]  # fmt: skip
    # With the statistics of the batch it was calibrated on, a norm gives its source values.
    np.testing.assert_allclose(ttac.load(bundle).step(x), run(onnx.load(str(path)), x), rtol=0, atol=1e-4)


def test_without_calibration_scale_and_shift_can_train_alone(tmp_path: Path) -> None:
    path = saved(source(DEPTHWISE, WEIGHTS), tmp_path)
    with pytest.raises(UnsupportedError, match="folded 2 norms into convolutions") as caught:
        ttac.compile(path, method="tent", output=tmp_path / "x.ttac")
    assert "--calibration" in caught.value.hint
    bundle = compiled(path, tmp_path, method="tent", batch=8, norms="keep")
    assert [site["kind"] for site in read(bundle)["sites"]] == ["affine"]


@pytest.mark.parametrize("tokens", ["", "5,"])
def test_a_norm_of_rows_is_told_by_its_name_only(tokens: str, tmp_path: Path) -> None:
    """[N, C] and [N, T, C], whose input is read elsewhere too; with plain names, it may be anything."""
    text = TABLE % (tokens, tokens)
    norms = found(text, ROWS, tmp_path)
    assert [(row.name, row.because) for row in norms.folded] == [
        ("net.bn_1", "the exporter left the scale and shift of `net.bn_1`")
    ]
    (site,) = norms.sites
    assert (site.kind, site.channels, site.spatial) == ("affine", 4, 5 if tokens else 1)
    plain = found(text.replace("net/bn_1/batchnorm/", "net/other/"), ROWS, tmp_path)
    assert not plain.sites and not [row for row in plain.folded if row.node.op_type != "Gemm"]
    x = np.random.default_rng(0).standard_normal((64, *([5] if tokens else []), 6), dtype=np.float32)
    path = saved(source(text, ROWS), tmp_path)
    bundle = compiled(path, tmp_path, method="tent", batch=64, calibration=x, head="dense" if tokens else "auto")
    np.testing.assert_allclose(ttac.load(bundle).step(x), run(onnx.load(str(path)), x), rtol=0, atol=1e-4)


def test_a_scale_behind_a_convolution_was_a_norm(tmp_path: Path) -> None:
    text = DEPTHWISE.replace('["net/dw_bn_1/batchnorm/mul_1"]', '["a/Mul"]').replace(FOLDED, '"net/conv_1/bias"')
    renamed = {"net/conv_1/bias" if "sub:0" in name else name: value for name, value in WEIGHTS.items()}
    norms = found(text, renamed, tmp_path)
    assert [row.because for row in norms.folded] == ["the exporter left the scale and shift of a norm"]


def test_a_linear_layer_on_rows_is_one_operator(tmp_path: Path) -> None:
    assert [node.op_type for node in normal(source(DEPTHWISE, WEIGHTS), tmp_path).graph][-1] == "Gemm"


def test_what_the_exporter_could_not_convert_is_named(tmp_path: Path) -> None:
    model = source(DEPTHWISE, WEIGHTS)
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Erfc"
    with pytest.raises(UnsupportedError, match="its opset has no `Erfc`") as caught:
        load(saved(model, tmp_path))
    assert "gelu(x, approximate=True)" in caught.value.hint


@pytest.mark.parametrize("net", ["batch", "own"])
def test_one_step_of_tent_equals_tensorflow(net: str, tmp_path: Path) -> None:
    """Logits of the source and of the step, and every parameter after it, as tf.GradientTape finds them (`make_keras`)."""
    path = GOLDEN / f"keras-{net}.onnx"
    golden = load_file(path.with_suffix(".safetensors"))
    after = {name.removeprefix("after/"): value for name, value in golden.items() if name.startswith("after/")}
    settings = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.0}
    calibration = golden["calibration"] if net == "batch" else None
    bundle = compiled(path, tmp_path, method="tent", batch=8, calibration=calibration, settings=settings)
    adapter = ttac.load(bundle)
    np.testing.assert_allclose(run(onnx.load(str(path)), golden["x"]), golden["logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(adapter.step(golden["x"]), golden["step"], rtol=0, atol=1e-4)
    state = state_of(adapter)
    for name, expected in after.items():
        layer, role = name.split("/")
        (ours,) = [key for key in state if f".{layer}_1" in key and key.endswith(ROLES[role])]
        np.testing.assert_allclose(state[ours].reshape(-1), expected.reshape(-1), rtol=0, atol=1e-4, err_msg=name)
    assert len(after) == 5


@pytest.mark.slow
def test_what_methods_read_of_pixels_is_given_as_it_is(tmp_path: Path) -> None:
    """The entropies of a dense head are kept in 8 bits for the backward; `surgeon` reads them whole."""
    path = restore(MATRIX / "keras_segmentation.tf2onnx-18.tent.onnx.gz", tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((20, 32, 32, 3), dtype=np.float32)
    bundle = compiled(path, tmp_path, method="surgeon", batch=4, calibration=x)
    graph = onnx.load(str(bundle / "forward.onnx"), load_external_data=False).graph
    assert "entropy.samples" in {value.name for value in graph.output}
    assert np.isfinite(ttac.load(bundle).step(x[:4])).all()


ON_TORCH = """
net (float[N,6,6,3] x) => (float[N,5] y) {
  t = Transpose <perm = [0, 3, 1, 2]> (x)
  c = Conv <pads = [1,1,1,1]> (t, k, b)
  z = Transpose <perm = [0, 2, 3, 1]> (c)
  d = Sub (z, mean)
  m = Mul (d, factor)
  a = Add (m, offset)
  r = Relu (a)
  p = ReduceMean <keepdims = 0> (r, space)
  y = MatMul (p, v)
}
"""


def test_a_norm_of_keras_on_pytorch_is_recognised(tmp_path: Path) -> None:
    """(x - mean)*factor + offset with factor = gamma/sqrt(variance + epsilon): a folded norm with Keras' epsilon."""
    random = np.random.default_rng(4)
    arrays = {name: random.normal(size=(1, 1, 1, 8)).astype(np.float32) for name in ("mean", "offset")}
    arrays["factor"] = random.uniform(0.5, 2, (1, 1, 1, 8)).astype(np.float32)
    weights = {**arrays, "k": (8, 3, 3, 3), "b": (8,), "v": (8, 5), "space": np.array([1, 2])}
    path = saved(source(ON_TORCH, weights), tmp_path)
    x = random.normal(size=(32, 6, 6, 3)).astype(np.float32)
    bundle = ttac.compile(path, method="tent", batch=4, calibration=x, output=tmp_path / "b.ttac")
    (site,) = bundle.manifest["sites"]
    assert (site["kind"], site["channels"], site["trained"]) == ("batch", 8, True)
    source_bundle = compiled(path, tmp_path, method="source", batch=4)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(
        ttac.load(source_bundle).step(x[:4]), session.run(None, {"x": x[:4]})[0], rtol=1e-5, atol=1e-6
    )
    state = load_file(tmp_path / "b.ttac" / "state.safetensors")
    kernel, bias = (onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.name in ("k", "b"))
    padded = np.pad(x.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    maps = np.einsum("nchwij,ocij->nohw", patches, kernel) + bias[:, None, None]
    deviation = np.sqrt(maps.var((0, 2, 3)) + 1e-3)
    scale = next(array for name, array in state.items() if name.endswith(".scale"))
    np.testing.assert_allclose(scale, arrays["factor"].reshape(-1) * deviation, rtol=1e-3)
