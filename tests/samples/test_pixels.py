"""`--pixels`: stated once, kept in the manifest, and used by all code that reads bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import ttac
from tests.conftest import Run
from ttac.errors import UsageError
from ttac.options import CompileOptions
from ttac.samples.images import preparation
from ttac.samples.pixels import KNOWN, black_and_white, resolve_pixels

COLOURS = """
<ir_version: 8, opset_import: ["" : 17]>
colours (float[N,3,6,5] x) => (float[N,3] logits) <float[3] one = {1,1,1}, float[3] zero = {0,0,0}> {
  normed = BatchNormalization(x, one, zero, zero, one)
  pooled = GlobalAveragePool(normed)
  logits = Flatten(pooled)
}
"""
LAST = COLOURS.replace("float[N,3,6,5] x", "float[N,6,5,3] pixels").replace(
    "normed =", "x = Transpose <perm = [0,3,1,2]> (pixels)\n  normed ="
)


pytestmark = pytest.mark.usefixtures("unmeasured")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path / "colours.onnx", COLOURS)


def saved(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(text), str(path))
    return path


def folder_of_images(path: Path) -> np.ndarray:
    """Four pictures [4, 3, 6, 5] of bytes, written as files."""
    path.mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (4, 3, 6, 5), np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.transpose(1, 2, 0)).save(path / f"{number}.png")
    return pictures


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ((), None),
        ("imagenet", KNOWN["imagenet"]),
        (["imagenet", "layout=NHWC"], {**KNOWN["imagenet"], "layout": "NHWC"}),
        (
            ["mean=0.5", "std = 0.25,0.5,1", "range=0,255"],
            {"mean": [0.5], "std": [0.25, 0.5, 1.0], "range": [0.0, 255.0]},
        ),
        ({"mean": 0.5, "std": (0.5, 1, 2)}, {"mean": [0.5], "std": [0.5, 1.0, 2.0]}),
    ],
)
def test_forms_of_a_statement(given: Any, expected: Any) -> None:
    assert resolve_pixels(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("imagnet", "`imagnet` is no statement"),
        ({"means": 1}, "`means` is no key"),
        (["mean=a"], "`a` is not a number"),
        (["mean="], "`` is not a number"),
        ({"mean": [math.nan]}, "`nan` is not a number"),
        ({"mean": []}, "above 0"),
        ({"mean": None}, "`None` is not a number"),
        (["std=1,0"], "above 0"),
        (["range=1"], "two numbers"),
        (["range=1,0"], "two numbers"),
        (["layout=CHW"], "`CHW` is no layout"),
    ],
)
def test_wrong_statements_are_refused(given: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve_pixels(given)
    assert "--pixels" in caught.value.where and caught.value.hint


def test_numbers_without_a_key_name_the_keys() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_pixels("-1,1")
    assert "range=" in (caught.value.hint or "")


def test_black_and_white_are_prepared_like_bytes() -> None:
    stated = {"mean": [0.5, 0.25, 0.0], "std": [0.5], "range": [0.0, 1.0]}
    ends = np.zeros((2, 3, 1, 1), np.uint8)
    ends[1] = 255
    expected = preparation(["N", 3, 1, 1], stated).prepare(ends).reshape(2, 3)
    found = [[float(number) for number in text.split(",")] for text in black_and_white(stated)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert black_and_white({}) == ("0", "1") and black_and_white({"range": [0.0, 255.0]}) == ("0", "255")


def test_calibration_and_run_prepare_bytes_alike(run: Run, model: Path, tmp_path: Path) -> None:
    pictures = folder_of_images(tmp_path / "pictures")
    mean, std = (np.array(KNOWN["imagenet"][key]).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    ready = ((pictures / 255 - mean) / std).astype(np.float32)
    bundle, images = tmp_path / "b.ttac", str(tmp_path / "pictures")
    assert run("compile", str(model), "--method", "bn", "--batch", "4", "--pixels", "imagenet", "--calibration", images,
                "-o", str(bundle)).code == 0  # fmt: skip
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["preprocessing"] == {"layout": "NCHW", **KNOWN["imagenet"], "range": [0.0, 1.0]}
    ran = run("run", str(bundle), images, "-o", str(tmp_path / "out.npz"))
    assert ran.code == 0 and "scaled to [0, 1]" not in ran.err
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_allclose(out["logits"], ttac.load(bundle).step(ready), atol=1e-5)
    assert "imagenet" not in run("inspect", str(bundle)).err
    assert "0.485" in run("inspect", str(bundle)).out


def test_channels_last_are_recognised(run: Run, tmp_path: Path) -> None:
    pictures = folder_of_images(tmp_path / "pictures")
    model = saved(tmp_path / "last.onnx", LAST)
    bundle = ttac.compile(model, method="source", batch=4, output=tmp_path / "b.ttac", pixels={"range": (0, 255)})
    assert bundle.manifest["preprocessing"]["layout"] == "NHWC"
    logits = run("run", str(bundle.path), str(tmp_path / "pictures"), "-o", str(tmp_path / "out.npz"))
    assert logits.code == 0
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_allclose(out["logits"], pictures.mean((2, 3)), rtol=1e-4)


def test_pixels_that_do_not_fit_the_model_write_no_bundle(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 numbers are stated for `mean`, the model's images have 3 channels"):
        ttac.compile(model, method="source", output=tmp_path / "b.ttac", pixels={"mean": [0.5, 0.5]})
    assert not (tmp_path / "b.ttac").exists()


def test_distortions_take_black_and_white_from_it(model: Path, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"method": "surgeon", "output": tmp_path / "b.ttac", "settings": {"cr": True}}
    stated = {**chosen, "settings": {"cr": True, "white": "3"}, "pixels": {"mean": [0.5], "std": [0.25]}}
    settings = CompileOptions.from_mapping(model, stated).settings
    assert (settings["black"], settings["white"]) == ("-2", "3")
    assert CompileOptions.from_mapping(model, chosen).settings["white"] == "1"


def test_no_images_no_pixels(tmp_path: Path) -> None:
    text = COLOURS.replace("[N,3,6,5]", "[N,3,20]")
    with pytest.raises(UsageError, match="not images"):
        ttac.compile(
            saved(tmp_path / "series.onnx", text), method="source", output=tmp_path / "b.ttac", pixels="imagenet"
        )


def test_eval_compiles_with_it(run: Run, model: Path, tmp_path: Path) -> None:
    folder_of_images(tmp_path / "pictures")
    seen = run("eval", str(model), "--data", str(tmp_path / "pictures"), "--methods", "source", "--batch", "4",
                "--pixels", "imagenet", "-o", str(tmp_path / "results"))  # fmt: skip
    assert seen.code == 0 and "scaled to [0, 1]" not in seen.err, seen.err
    (manifest,) = (tmp_path / "results").rglob("manifest.json")
    assert json.loads(manifest.read_text())["preprocessing"]["mean"] == KNOWN["imagenet"]["mean"]


def test_inspect_has_no_option_that_it_would_ignore(run: Run, model: Path) -> None:
    assert run("inspect", str(model)).code == 0
    assert run("inspect", str(model), "--pixels", "imagenet").code == 2
