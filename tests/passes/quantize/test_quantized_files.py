"""Files that are already 8-bit: the float model lifted out of them, and the same grids afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import ttac
from tests.support.saturating_engine import products_saturate
from tests.support.source_models import run, saved, source
from tests.support.static_quantization import quantized_by_the_engine
from ttac import targets
from ttac.errors import UnsupportedError
from ttac.inspection import inspect_model
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.norm_sites import find_norms
from ttac.passes.quantize.float_layers import float_layers
from ttac.passes.quantize.fold import fold_norms
from ttac.passes.quantize.modules import quantize
from ttac.passes.quantize.quantized_files import GRIDS, grids_of, is_quantized, lift

MODELS = Path(__file__).resolve().parents[2] / "models"
SETTINGS: dict[str, Any] = {"calibration": "minmax", "percentile": 99.99}

ISLAND = """
net (float[N,3,6,6] x) => (float[N,4] y) {
  qx = QuantizeLinear (x, sx, zx)
  dx = DequantizeLinear (qx, sx, zx)
  dw = DequantizeLinear <axis = 0> (w, sw, zw)
  db = DequantizeLinear <axis = 0> (b, sb)
  c = Conv <pads = [1,1,1,1]> (dx, dw, db)
  qc = QuantizeLinear (c, sc, zc)
  dc = DequantizeLinear (qc, sc, zc)
  p = GlobalAveragePool (dc)
  y = Flatten (p)
}
"""


def island(**changed: np.ndarray) -> onnx.ModelProto:
    """One Conv as quantizers write it: its Relu left to the rounding, one scale for each filter."""
    random = np.random.default_rng(0)
    scales = np.array([0.01, 0.02, 0.005, 0.01], np.float32)
    weights: dict[str, Any] = {
        "sx": np.float32(0.02),
        "zx": np.uint8(120),
        "w": random.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "sw": scales,
        "zw": np.zeros(4, np.int8),
        "b": random.integers(-900, 900, 4).astype(np.int32),
        "sb": scales * np.float32(0.02),
        "sc": np.float32(0.1),
        "zc": np.uint8(0),
    }
    return source(ISLAND, {name: np.asarray(array) for name, array in {**weights, **changed}.items()})


def samples(shape: tuple[int, ...] = (48, 3, 6, 6)) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def by_theirs(path: Path, folder: Path, **choices: Any) -> Path:
    """The file as onnxruntime's own quantizer writes it."""
    plain = normalise(load(path), simplifier=None)
    fold_norms(plain, ())
    x = samples((48, *[int(str(size)) for size in (plain.graph.inputs[0].shape or [])[1:]]))
    return quantized_by_the_engine(plain, x, folder, **choices)


def off(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())


def test_a_lifted_layer_is_a_plain_one_with_its_grids(tmp_path: Path) -> None:
    file = load(saved(island(), tmp_path))
    assert is_quantized(file)
    model, count = lift(file)
    assert [node.op_type for node in model.graph] == ["Conv", "Clip", "GlobalAveragePool", "Flatten"]
    assert count == 2 and is_quantized(file), "the file's own graph stays as it is"
    noted = json.loads(model.metadata_props[GRIDS])
    assert noted["x"] == pytest.approx([-120 * 0.02, 135 * 0.02])
    assert noted["c.clip"] == pytest.approx([0, 255 * 0.1])
    assert grids_of(model).keys() == {"x", "c.clip"} and GRIDS not in model.metadata_props


@pytest.mark.skipif(products_saturate(), reason="the engine itself overflows on this file")
def test_it_computes_what_the_file_means_but_for_the_rounding(tmp_path: Path) -> None:
    proto = island()
    model, _ = lift(load(saved(proto, tmp_path)))
    x = np.clip(samples(), -2.3, 2.6)
    assert off(run(model, x), run(proto, x)) < 0.03


def test_rounded_again_it_is_the_file(tmp_path: Path) -> None:
    """No data is needed: every value that the 8-bit room rounds has its grid in the file."""
    proto = island()
    lifted, _ = lift(load(saved(proto, tmp_path)))
    model = normalise(lifted, simplifier=None)
    quantize(model, [], None, targets.find("cpu"), SETTINGS, grids_of(model))
    x = samples()
    np.testing.assert_allclose(run(model, x), run(proto, x), rtol=0, atol=0.1 / 36 * 2)


@pytest.mark.skipif(products_saturate(), reason="the engine itself overflows on this file")
def test_kernels_kept_in_float_before_their_rounding(tmp_path: Path) -> None:
    """Exporters of fake-quantized PyTorch models write QuantizeLinear behind a float kernel."""
    kernel = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    text = ISLAND.replace("  dw =", "  q = QuantizeLinear <axis = 0> (w, sw, zw)\n  dw =").replace(
        "(w, sw", "(q, sw", 2
    )
    text = text.replace("QuantizeLinear <axis = 0> (q,", "QuantizeLinear <axis = 0> (w,", 1)
    proto = island(w=kernel)
    proto.graph.CopyFrom(source(text, {}).graph)
    for tensor in island(w=kernel).graph.initializer:
        proto.graph.initializer.append(tensor)
    model, _ = lift(load(saved(proto, tmp_path)))
    x = np.clip(samples(), -2.3, 2.6)
    assert off(run(model, x), run(proto, x)) < 0.03
    assert "QuantizeLinear" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize(
    ("text", "weights", "said"),
    [
        ("qx = QuantizeLinear (x, s, z)\n  qm = MaxPool <kernel_shape = [2,2]> (qx)\n  y = DequantizeLinear (qm, s, z)",
         {"z": np.uint8(3)}, "no QuantizeLinear rounds its input"),
        ("qx, t, v = DynamicQuantizeLinear (x)\n  y = DequantizeLinear (qx, t, v)",
         {}, "`DynamicQuantizeLinear` computes in integers"),
        ("t = ReduceMax <keepdims = 0> (x)\n  qx = QuantizeLinear (x, t, z)\n  y = DequantizeLinear (qx, t, z)",
         {"z": np.uint8(3)}, "a scale or zero point is computed"),
        ("qx = QuantizeLinear <axis = 1> (x, v, w)\n  y = DequantizeLinear <axis = 1> (qx, v, w)",
         {"v": np.ones(3, np.float32), "w": np.zeros(3, np.uint8)}, "a grid for each channel"),
    ],
)  # fmt: skip
def test_forms_that_cannot_be_lifted(text: str, weights: dict[str, Any], said: str, tmp_path: Path) -> None:
    graph = f"net (float[N,3,6,6] x) => (float y) {{\n  {text}\n}}"
    given = {name: np.asarray(array) for name, array in {"s": np.float32(0.1), **weights}.items() if name in text}
    with pytest.raises(UnsupportedError) as caught:
        lift(load(saved(source(graph, given), tmp_path)))
    assert said in caught.value.problem and "QDQ" in caught.value.hint and caught.value.exit_code == 3


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_norms_are_put_back_between_8_bit_layers(kind: str, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    type_ = quantization.QuantType.QUInt8 if kind == "uint8" else quantization.QuantType.QInt8
    path = by_theirs(MODELS / "resnet.onnx", tmp_path, activation_type=type_)
    x = samples((48, 3, 16, 16))
    said: list[str] = []
    bundle = ttac.compile(
        path, method="bn", calibration=x, batch=8, output=tmp_path / "b.ttac", train="first:2", say=said.append
    )
    assert bundle.path is not None
    assert any("the file is 8-bit already" in line for line in said)
    assert [site["inserted"] for site in bundle.manifest["sites"]] == [True, True]
    assert sum(bool(row["adapts"]) for row in bundle.report["modules"]) == 2
    assert float_layers(bundle.path / "forward.onnx") == []
    assert bundle.report["verified"]["quantized"] < 0.1
    shifted = (0.5 * x + 1)[:8]
    adapter = ttac.load(bundle.path)
    assert not np.allclose(adapter.step(shifted), run(onnx.load(str(path)), shifted), atol=1e-2)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_the_file_alone_is_enough_where_nothing_adapts(form: str, tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    format_ = quantization.QuantFormat[form]  # 7 bits: kernels of integers may overflow their sums in 16 bits
    path = by_theirs(MODELS / "mobilenet_v2.onnx", tmp_path, quant_format=format_, reduce_range=True)
    kinds = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert ("QLinearConv" in kinds) == (form == "QOperator")
    x = samples((4, 3, 16, 16))
    bundle = ttac.compile(path, method="source", batch=4, output=tmp_path / "b.ttac")
    assert bundle.path is not None
    assert off(ttac.load(bundle.path).step(x), run(onnx.load(str(path)), x)) < 0.05


def test_its_kernels_cannot_be_trained(tmp_path: Path) -> None:
    path = saved(island(), tmp_path)
    with pytest.raises(UnsupportedError, match="kernels of 8 bits cannot be trained") as caught:
        ttac.compile(path, method="tent", train="all")
    assert "8-bit already" in caught.value.where and "--train all" in caught.value.hint
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_its_norms_can(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime.quantization")
    path = by_theirs(MODELS / "resnet.onnx", tmp_path)
    x = samples((48, 3, 16, 16))
    bundle = ttac.compile(path, method="tent", calibration=x, batch=8, output=tmp_path / "b.ttac", train="first:2")
    assert bundle.path is not None
    adapter = ttac.load(bundle.path)
    before = adapter.predict(x[:8])
    adapter.step(x[:8])
    assert not np.array_equal(adapter.predict(x[:8]), before)
    assert float_layers(bundle.path / "forward.onnx") == []


def test_an_8_bit_model_of_ttac_can_be_compiled_again(tmp_path: Path) -> None:
    """Its adapted norms, which read the numbers of a grid, get back their own units."""
    plain = normalise(load(MODELS / "resnet.onnx"), simplifier=None)
    x = samples((48, 3, 16, 16))
    model = plain.clone()
    sites = [site for site in find_norms(model).sites][::2]
    quantize(model, sites, x, targets.find("cpu"), SETTINGS)
    ir.save(model, tmp_path / "int8.onnx")
    lifted, _ = lift(load(tmp_path / "int8.onnx"))
    assert off(run(lifted, x), run(plain, x)) < 0.02
    norms = [node for node in lifted.graph if node.op_type == "BatchNormalization"]
    for norm in norms:
        mean, var = (value.const_value.numpy() for value in norm.inputs[3:5])  # type: ignore[union-attr]
        np.testing.assert_allclose(mean, 0, atol=1e-3)
        np.testing.assert_allclose(var, 1, atol=1e-3)
    assert len(norms) == len(sites)


def test_inspect_tells(tmp_path: Path) -> None:
    report = inspect_model(saved(island(), tmp_path))
    assert report["eight_bit"].startswith("2 values are rounded")
    fits = {row["method"]: (row["fits"], row["because"]) for row in report["methods"]}
    assert fits["source"][0] == "yes" and fits["tent"][0] != "yes", "it has no norm, and a Conv with a bias"


def rewritten(changes: dict[str, str], **weights: np.ndarray) -> onnx.ModelProto:
    """`ISLAND` with lines replaced."""
    text = ISLAND
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    proto = source(text, {})
    given = {**{t.name: onnx.numpy_helper.to_array(t) for t in island().graph.initializer}, **weights}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in given.items())
    return proto


def lifted_of(proto: onnx.ModelProto, folder: Path) -> tuple[list[str], dict[str, tuple[float, float]]]:
    """The operators of the lifted file, and its grids; the numbers are the file's but for the rounding."""
    model, _ = lift(load(saved(proto, folder)))
    x = np.clip(samples(), -1.2, 1.2)
    assert off(run(model, x), run(proto, x)) < 0.05
    return [node.op_type for node in model.graph], grids_of(model)


PLAIN = ["Conv", "Clip", "GlobalAveragePool", "Flatten"]


def test_pytorchs_casts_and_computed_zero_points(tmp_path: Path) -> None:
    proto = rewritten(
        {
            "  dx = DequantizeLinear (qx,": "  cx = Cast <to = 2> (qx)\n  dx = DequantizeLinear (cx,",
            "  db = DequantizeLinear <axis = 0> (b, sb)": "  z0 = ConstantOfShape <value = float[1] {0}> (four)\n"
            "  z1 = Cast <to = 6> (z0)\n  db = DequantizeLinear <axis = 0> (b, sb, z1)",
        },
        four=np.array([4], np.int64),
    )
    assert lifted_of(proto, tmp_path)[0] == PLAIN


def test_seven_bits_of_a_byte_are_a_shorter_grid(tmp_path: Path) -> None:
    changes = {"  dx = DequantizeLinear (qx,": "  kx = Clip (qx, , top)\n  dx = DequantizeLinear (kx,"}
    proto = rewritten(changes, top=np.uint8(127), zx=np.uint8(64))
    operators, grids = lifted_of(proto, tmp_path)
    assert operators == PLAIN and grids["x"] == pytest.approx((-64 * 0.02, 63 * 0.02))


def test_values_that_move_in_8_bits_keep_their_numbers(tmp_path: Path) -> None:
    """As tf2onnx leaves TensorFlow Lite's channels; a joined value keeps the grid of its reader."""
    moved = "  tx = Transpose <perm = [0, 1, 3, 2]> (qx)\n  jx = Concat <axis = 0> (tx)\n  dx = DequantizeLinear (jx,"
    operators, grids = lifted_of(rewritten({"  dx = DequantizeLinear (qx,": moved}), tmp_path)
    assert operators == ["Transpose", "Concat", *PLAIN]
    assert len({ends for name, ends in grids.items() if name not in ("c.clip",)}) == 1


def test_numbers_read_with_another_scale_are_refused(tmp_path: Path) -> None:
    moved = "  tx = Transpose <perm = [0, 1, 3, 2]> (qx)\n  dx = DequantizeLinear (tx, other, zx)\n  dy = Identity (dx)"
    proto = rewritten({"  dx = DequantizeLinear (qx, sx, zx)": moved}, other=np.float32(0.03))
    with pytest.raises(UnsupportedError, match="another scale than they were rounded to"):
        lift(load(saved(proto, tmp_path)))


def test_the_grid_behind_a_relu6_ends_where_it_does(tmp_path: Path) -> None:
    """PyTorch rounds on both sides of it with one grid; cut, the two are one 8-bit operator."""
    changes = {"  qc = QuantizeLinear (c, sc, zc)": "  k = Clip (c, low, top)\n  qc = QuantizeLinear (k, sc, zc)"}
    ends = {"low": np.float32(0), "top": np.float32(6)}
    proto = rewritten(changes, zc=np.uint8(60), sc=np.float32(0.05), **ends)
    operators, grids = lifted_of(proto, tmp_path)
    assert operators == ["Conv", "Clip", "GlobalAveragePool", "Flatten"] and grids["k"] == pytest.approx((0, 6))


def test_the_division_of_8_bit_training_goes_into_the_kernel(tmp_path: Path) -> None:
    changes = {
        "(dx, dw, db)": "(dx, dw, zero)",
        "  qc = QuantizeLinear (c,": "  v = Div (c, factor)\n  n = BatchNormalization (v, g, g, g, g)\n"
        "  qc = QuantizeLinear (n,",
    }
    factor = np.array([0.5, 2.0, 1.5, 0.7], np.float32)
    given = {"factor": factor.reshape(1, 4, 1, 1), "g": factor, "zero": np.zeros(4, np.float32)}
    proto = rewritten(changes, zc=np.uint8(128), sc=np.float32(0.2), **given)
    assert lifted_of(proto, tmp_path)[0] == ["Conv", "BatchNormalization", "GlobalAveragePool", "Flatten"]
    (site,) = find_norms(normalise(lift(load(saved(proto, tmp_path)))[0], simplifier=None)).sites
    assert site.kind == "batch" and np.array_equal(site.scale, factor)
