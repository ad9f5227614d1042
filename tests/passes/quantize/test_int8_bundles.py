"""Bundles in 8 bits: their weights, their reports, and the refusals of a target or an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import ttac
from tests.support.int8_models import MODELS, in_8_bits, off, samples, written
from tests.support.source_models import saved, source
from tests.support.whole_models import compiled as whole
from ttac import targets
from ttac.errors import TtacError, UnsupportedError, UsageError
from ttac.passes.graph.execute import Executable
from ttac.passes.load.model_file import load
from ttac.passes.quantize.float_layers import float_layers
from ttac.passes.quantize.int8_weights import int8_kernel


def compiled(folder: Path, **choices: Any) -> ttac.Bundle:
    model = saved(source(), folder)
    x = np.random.default_rng(1).random((40, 3, 8, 8), np.float32)
    return ttac.compile(model, **{"quantize": "int8", "calibration": x, "batch": 2, "method": "source", **choices})


def test_a_bundle_holds_its_weights_in_8_bits(tmp_path: Path) -> None:
    path = Path(ttac.__file__).parent / "demo" / "fashion_resnet_bn_unfolded.onnx"
    plain, model, _ = in_8_bits(path, 3)
    infer = written(model, tmp_path).parent
    stored = load_file(infer / "weights.safetensors")
    weights = sum(v.const_value.size for v in plain.graph.initializers.values() if v.const_value is not None)
    assert {str(array.dtype) for array in stored.values() if array.ndim > 1} == {"int8"}
    assert (infer / "weights.safetensors").stat().st_size < 1.1 * weights, "a byte for each, and the scales"


def test_a_bundle_adapts_and_reports_its_modules(tmp_path: Path) -> None:
    model = MODELS / "mobilenet_v2.onnx"
    x = samples(load(model))
    bundle = ttac.compile(model, method="bn", quantize="int8", calibration=x, batch=2, output=tmp_path / "b.ttac")
    assert bundle.path is not None
    adapter = ttac.load(bundle.path)
    y = adapter.predict(x[:2])
    assert np.isfinite(y).all() and adapter.step(x[:2]).shape == y.shape
    rows = bundle.report["modules"]
    assert {row["runs"] for row in rows} == {"int8"} and sum(bool(row["adapts"]) for row in rows) == 8
    assert bundle.report["verified"]["quantized"] < 0.1


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet", "signal"])
def test_a_single_sample_adapts_in_8_bits_as_in_a_batch(name: str, tmp_path: Path) -> None:
    """Two spellings of the norm, and both as the engine fuses them; without fusing, the same numbers."""
    model = MODELS / f"{name}.onnx"
    x = samples(load(model))
    shifted = (0.5 * x[:6] + 1).astype(np.float32)
    choices: dict[str, Any] = {"quantize": "int8", "calibration": x}
    plain = ttac.load(whole(model, tmp_path, method="source", batch=6, **choices)).step(shifted)
    paths = {batch: whole(model, tmp_path, method="leantta", batch=batch, **choices) for batch in (1, 6)}
    one, all_of_them = (ttac.load(path) for path in paths.values())
    found = np.concatenate([one.step(sample[None]) for sample in shifted])
    together = all_of_them.step(shifted)
    assert off(found, together) < 0.03 < off(plain, together)
    as_written = Executable(paths[1] / "forward.onnx", optimised=False)
    (logits,) = as_written({str(load(model).graph.inputs[0].name): shifted[:1]}).values()
    assert off(logits, found[:1]) < 0.03
    assert not float_layers(paths[1] / "forward.onnx")


def test_methods_see_the_same_shift_in_8_bits_as_in_float(tmp_path: Path) -> None:
    model = MODELS / "resnet.onnx"
    x = samples(load(model))
    shifted = (0.5 * x + 1).astype(np.float32)
    found = {}
    for quantized in (None, "int8"):
        bundle = ttac.compile(
            model, method="bn", quantize=quantized, calibration=x, batch=64, output=tmp_path / f"{quantized}.ttac"
        )
        assert bundle.path is not None
        found[quantized] = ttac.load(bundle.path).step(shifted)
    assert off(found["int8"], found[None]) < 0.1


@pytest.mark.parametrize(
    ("calibration", "error", "said"),
    [
        (None, UnsupportedError, "there is no data to measure them on"),
        (np.full((1, 3, 8, 8), 0.5, np.float32), UsageError, "the only sample holds one value everywhere"),
        (np.zeros((9, 3, 8, 8), np.float32), UsageError, "all 9 samples hold one value everywhere"),
        (np.full((9, 3, 8, 8), np.nan, np.float32), UsageError, "calibration data contains NaN or infinity"),
        (np.ones((9, 3, 8, 9), np.float32), UsageError, "have shape [3, 8, 9]"),
        (np.ones((0, 3, 8, 8), np.float32), UsageError, "holds no sample"),
    ],
)
def test_data_that_gives_no_ranges(
    calibration: np.ndarray | None, error: type[TtacError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said.replace("[", r"\[")) as caught:
        compiled(tmp_path, calibration=calibration)
    assert caught.value.exit_code == (3 if error is UnsupportedError else 2)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_one_image_is_doubted_but_taken(tmp_path: Path) -> None:
    said: list[str] = []
    x = np.random.default_rng(1).random((1, 3, 8, 8), np.float32)
    assert compiled(tmp_path, calibration=x, say=said.append).path
    assert any("1 calibration samples are few" in line for line in said)


@pytest.mark.parametrize(
    ("operators", "said"),
    [((), "states no 8-bit operators"), (("Gemm",), "has no 8-bit `Conv`"), (("Conv",), "has no 8-bit `Gemm`")],
)
def test_a_target_that_lacks_an_operator(operators: tuple[str, ...], said: str, tmp_path: Path) -> None:
    table = targets.source("cpu").split("int8_operators")[0]
    (tmp_path / "board.toml").write_text(f"{table}int8_operators = {list(operators)!r}\n", encoding="utf-8")
    with pytest.raises(UnsupportedError) as caught:
        compiled(tmp_path, target=str(tmp_path / "board.toml"))
    assert said in str(caught.value) and caught.value.exit_code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["board.toml", "model.onnx"]


def test_an_engine_that_lacks_an_operator(tmp_path: Path) -> None:
    text = """
    net (float[N,2] x) => (float[N,2] y) { y = SoftmaxCrossEntropy (x) }
    """
    path = saved(source(text, {}), tmp_path)
    with pytest.raises(UnsupportedError, match="does not run the 8-bit graph") as caught:
        float_layers(path)
    assert caught.value.exit_code == 3 and "int8_operators" in caught.value.hint


def test_products_of_a_method_are_not_taken_for_layers(tmp_path: Path) -> None:
    assert compiled(tmp_path, method="lame").path


def test_the_built_in_target_suits_sums_in_16_bits(tmp_path: Path) -> None:
    """The largest sum of two products is 2 * 255 * 63, below 2^15."""
    target = targets.find("cpu")
    kernel = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    rounded, _ = int8_kernel(kernel, 0, None, 0.1, target)
    assert target.int8_activations == "uint8" and 2 * 255 * int(np.abs(rounded.astype(int)).max()) < 2**15


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--quantize", "int8"], 3, "hint: give a few hundred unlabelled source samples: `--calibration PATH`"),
        (["--quantize", "int4"], 2, "`int4` is no choice"),
        (["--quantize", "int8", "--set", "calibration=mean"], 2, "`mean` is not a choice of `calibration`"),
        (["--set", "calibration=entropy"], 2, "has no option `calibration`"),
        (["--train", "first:0"], 2, "`0` is not a count of norms"),
        (["--train", "auto:1"], 3, "or choose yourself: `--train first:30%`"),
    ],
)
def test_the_command_line_reports_8_bits(
    arguments: list[str], code: int, said: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = saved(source(), tmp_path)
    found = request.getfixturevalue("run")("compile", str(model), "--method", "bn", *arguments)
    assert found.code == code and said in found.err, found.err
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
