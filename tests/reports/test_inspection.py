"""`ttac inspect MODEL`: norms, folded norms, operators without gradient, and which methods fit."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import ttac
from tests.conftest import Run
from ttac import demo, methods
from ttac.inspection import inspect_model
from ttac.passes.differentiate.reverse_walk import RULES

FOLDED, KEPT = "fashion_resnet_bn.onnx", "fashion_resnet_bn_unfolded.onnx"

TRAINING = [name for name in methods.names() if methods.find(name).trains]
STATISTICS = [name for name in methods.names() if methods.find(name).adapts and name not in TRAINING]
IDLE = [name for name in methods.names() if not methods.find(name).adapts]
"""Methods that train scale and bias, methods that change statistics only, and methods that leave the norms unchanged."""


def expected(training: str, statistics: str) -> dict[str, str]:
    return {
        **dict.fromkeys(TRAINING, training),
        **dict.fromkeys(STATISTICS, statistics),
        **dict.fromkeys(IDLE, "yes"),
        "sight": "with --batch",
        "foa": "no",
        "foa-i": "no",
        "ttt": "no",
        "ecotta": "no" if statistics == "no" else "with --calibration",
        "zoa": "no" if training == statistics == "no" else "with --calibration",
    }


def fits(report: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    return {row["method"]: row["fits"] for row in report["methods"]}


def test_a_file_with_norms() -> None:
    report = inspect_model(demo.file(KEPT))
    first = report["norm_sites"][0]
    assert {**first, "of_all_values": None} == {
        "order": 1, "name": "bn1", "kind": "batch", "channels": 16, "spatial": 784, "of_all_values": None
    }  # fmt: skip
    assert sum(row["of_all_values"] for row in report["norm_sites"]) == pytest.approx(1)
    assert len(report["norm_sites"]) == 13 and not report["folded"] and not report["without_gradient"]
    assert {"tent", "sar"} <= set(TRAINING) and {"bn", "leantta"} <= set(STATISTICS) and {"source", "lame"} <= set(IDLE)
    assert fits(report) == expected("yes", "yes")
    assert (report["input"], report["output"]) == ("x float32 [N,1,28,28]", "logits float32 [N,10]")


def test_a_file_whose_norms_were_folded() -> None:
    report = inspect_model(demo.file(FOLDED))
    assert not report["norm_sites"] and len(report["folded"]) == 13
    assert report["folded"][0] == {
        "name": "bn1",
        "operator": "Conv",
        "because": "the exporter folded `bn1` into it",
    }
    assert fits(report) == expected("with --calibration", "with --calibration")
    assert fits(inspect_model(demo.file(FOLDED), norms="keep")) == expected("no", "no")


@pytest.fixture
def without_bias(tmp_path: Path) -> Path:
    """An untrained net from torch's exporter: the fold gave biases of zeros, which the exporter removed."""
    model = onnx.load(demo.file(FOLDED))
    for node in model.graph.node:
        if node.op_type == "Conv":
            del node.input[2:]
    onnx.save(model, tmp_path / "untrained.onnx")
    return tmp_path / "untrained.onnx"


def test_the_exporters_note_names_a_folded_norm_without_bias(without_bias: Path) -> None:
    report = inspect_model(without_bias)
    assert len(report["folded"]) == 13 and fits(report) == expected("with --calibration", "with --calibration")


@pytest.mark.slow
def test_it_comes_back_as_the_identity_all_the_same(without_bias: Path, tmp_path: Path) -> None:
    bundle = ttac.compile(
        without_bias, method="tent", calibration=demo.file("fashion_calibration.npz"), output=tmp_path / "b.ttac"
    )
    assert bundle.manifest["verified"]["logits_off"] < 1e-5
    assert sum(site["inserted"] for site in bundle.manifest["sites"]) == 13


def test_a_file_without_batch_norms() -> None:
    report = inspect_model(demo.file("fashion_vit.onnx"))
    assert {site["kind"] for site in report["norm_sites"]} == {"layer"}
    assert fits(report) == {
        **expected("yes", "no"),
        "mecta": "no",
        "foa": "with --calibration",
        "foa-i": "with --calibration",
    }


def test_all_operators_without_gradient_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "Relu")
    monkeypatch.delitem(RULES, "Gemm")
    report = inspect_model(demo.file(KEPT))
    assert [(row["operator"], len(row["nodes"])) for row in report["without_gradient"]] == [("Gemm", 1), ("Relu", 11)]
    assert fits(report) == expected("no", "yes")


def test_the_report_on_the_terminal(run: Run) -> None:
    seen = run("inspect", str(demo.file(KEPT)))
    assert seen.code == 0
    assert "norms             13 batch\n" in seen.out and "\nnear misses       none\n" in seen.out
    lines = seen.out.splitlines()
    assert "methods" in lines and "bn yes the file has 13 batch norms" in {" ".join(line.split()) for line in lines}
    assert json.loads(run("inspect", str(demo.file(KEPT)), "--json").out)["nodes"] > 20


def test_a_file_that_is_no_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("no model")
    seen = run("inspect", "m.onnx")
    assert seen.code in (2, 3) and seen.err.startswith("error: ") and "`m.onnx`" in seen.err
