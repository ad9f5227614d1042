"""`inspect` refuses no valid file: it describes the file, and gives a verdict on each method with the option for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import ttac
from tests.conftest import Run
from tests.support.real_files import POOLED, images, written
from ttac import methods
from ttac.errors import TtacError, UnsupportedError
from ttac.inspection import inspect_model

CLASSES = f"{POOLED} y = MatMul (f, wf)"


def rows(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    assert [row["method"] for row in report["methods"]] == list(methods.names())
    return {row["method"]: (row["fits"], row["option"]) for row in report["methods"]}


def test_open_sizes_are_tried(tmp_path: Path, run: Run) -> None:
    path = written(tmp_path, "(float[N,3,height,width] x) => (float[N,5] y)", CLASSES)
    option = ("with --shape", "--shape 3x224x224")
    assert rows(inspect_model(path)) | {"source": option, "tent": option, "bn": option} == rows(inspect_model(path))
    assert rows(inspect_model(path, shape=(3, 16, 16)))["tent"] == ("yes", "")
    assert run("inspect", str(path)).code == 0
    with pytest.raises(UnsupportedError, match="`--shape 3x224x224`; a compile also reads it from `--calibration`"):
        ttac.compile(path, dry_run=True)


def test_several_inputs_fit(tmp_path: Path, run: Run) -> None:
    nodes = f"{POOLED} h = MatMul (f, wf) \n y = Div (h, temperature)"
    path = written(tmp_path, "(float[1] temperature, float[N,3,8,8] x) => (float[N,5] y)", nodes)
    report = inspect_model(path)
    assert rows(report)["tent"] == rows(report)["source"] == ("yes", "")
    assert report["inputs"] == ["temperature float32 [1]", "x float32 [N,3,8,8]"]
    seen = run("inspect", str(path))
    assert seen.code == 0 and "temperature" in seen.out
    assert inspect_model(path, hold={"temperature": 1})["input"] == "x float32 [N,3,8,8]"


def test_several_outputs_name_the_option(tmp_path: Path) -> None:
    path = written(tmp_path, "(float[N,3,8,8] x) => (float[N,4] boxes, float[N,5] scores)", f"""{POOLED}
      boxes = MatMul (f, wb)
      h = MatMul (f, wf)
      scores = Softmax <axis = 1> (h)""")  # fmt: skip
    found = rows(inspect_model(path))
    assert found["tent"] == ("with --logits", "--logits scores") and found["bn"] == found["source"] == ("yes", "")
    assert inspect_model(path)["outputs"] == ["boxes float32 [N,4]", "scores float32 [N,5]"]


BEHIND = f"""
  p = GlobalAveragePool (x)
  q = Flatten (p)
  early = MatMul (q, we) {POOLED}
  late = MatMul (f, wf)
"""


def test_a_loss_in_front_of_all_norms_names_another_output(tmp_path: Path) -> None:
    more = {"we": np.ones((3, 4), np.float32)}
    path = written(tmp_path, "(float[N,3,8,8] x) => (float[N,4] early, float[N,5] late)", BEHIND, more)
    found = rows(inspect_model(path, logits="early"))
    assert found["tent"] == found["surgeon"] == ("with --logits", "--logits late") and found["bn"] == ("yes", "")
    with pytest.raises(UnsupportedError, match="none of the norms lies in front of the output `early`"):
        ttac.compile(path, method="surgeon", logits="early", output=tmp_path / "b.ttac")
    ttac.compile(path, method="surgeon", batch=4, logits="early,late", output=tmp_path / "b.ttac")
    assert ttac.load(tmp_path / "b.ttac").step(images(4)).keys() == {"early", "late"}


def test_samples_make_inspect_sure(tmp_path: Path, run: Run) -> None:
    nodes = "c = Conv <pads = [1, 1, 1, 1]> (x, w, b) \n r = Relu (c) \n g = GlobalAveragePool (r) \n f = Flatten (g)"
    path = written(tmp_path, "(float[N,3,height,width] x) => (float[N,5] y)", f"{nodes} \n y = MatMul (f, wf)")
    assert rows(inspect_model(path))["bn"][0] == "with --calibration"
    report = inspect_model(path, calibration=images(8, 3, 12, 10))
    assert rows(report)["bn"] == ("yes", "") and report["input"] == "x float32 [N,3,12,10]"
    np.savez(tmp_path / "s.npz", images=images(8, 3, 12, 10))
    assert run("inspect", str(path), "--calibration", str(tmp_path / "s.npz")).code == 0
    assert run("inspect", str(path), "--calibration", str(tmp_path / "none.npz")).code == 2


def test_classical_models_are_no_networks(tmp_path: Path) -> None:
    nodes = f"x2 = ai.onnx.ml.Scaler <offset = [0.0], scale = [2.0]> (x) {POOLED.replace('(x, w)', '(x2, w)')} y = MatMul (f, wf)"
    path = written(tmp_path, "(float[N,3,8,8] x) => (float[N,5] y)", nodes)
    model = onnx.load(path)
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 1))
    onnx.save(model, path)
    report = inspect_model(path)
    assert {fits for fits, _ in rows(report).values()} == {"no"}
    assert "prepare its input outside" in report["obstacle"]["hint"] and "1 Scaler" in report["operators"]


@pytest.mark.parametrize(
    ("signature", "nodes"),
    [
        ("(float[N,3,8,8] x) => (float[N,5] y)", CLASSES),
        ("(float[N,3,1,1] x) => (float[N,5] y)", CLASSES),
        ("(float[N,3,8,8] x) => (float[N,5] y, float[N,4] z)", f"{CLASSES} \n z = MatMul (f, wb)"),
        ("(float[N,3,8,8] x) => (float[N,5] y)", f"{POOLED} a = MatMul (f, wf) \n h = Asinh (a) \n y = Softmax (h)"),
    ],
)
@pytest.mark.slow
def test_inspect_and_compile_agree(signature: str, nodes: str, tmp_path: Path) -> None:
    path = written(tmp_path, signature, nodes)
    for name, (fits, _) in rows(inspect_model(path)).items():
        try:
            ttac.compile(path, method=name, batch=4, dry_run=True)
            compiles = True
        except TtacError:
            compiles = False
        assert compiles == (fits == "yes"), (name, fits)


def test_a_mask_of_infinity_is_named(tmp_path: Path) -> None:
    mask = {"mask": np.array([0, 0, 0, 0, -np.inf], np.float32)}
    path = written(
        tmp_path, "(float[N,3,8,8] x) => (float[N,5] y)", f"{POOLED} h = MatMul (f, wf) \n y = Add (h, mask)", mask
    )
    bundle = tmp_path / "b.ttac"
    ttac.compile(path, method="source", output=bundle)
    assert np.isneginf(ttac.load(bundle).step(images(2))[:, 4]).all()
    try:
        ttac.compile(path, method="tent", output=tmp_path / "t.ttac")
    except TtacError as error:
        assert "a mask of -inf" in str(error) and "please report" not in str(error)
