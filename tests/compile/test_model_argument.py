"""`ttac.compile` on models in memory: ONNX and PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ttac
from tests.support.source_models import saved, source
from ttac.errors import UnsupportedError, UsageError

pytestmark = pytest.mark.usefixtures("unmeasured")
OPTIONS: dict[str, Any] = {"method": "tent", "batch": 4}


def test_a_model_in_memory_equals_its_file(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    outputs = []
    for name, model in (("file", saved(source(), tmp_path)), ("memory", source())):
        ttac.compile(model, output=tmp_path / f"{name}.ttac", **OPTIONS)
        outputs.append(ttac.load(tmp_path / f"{name}.ttac").step(x))
    np.testing.assert_array_equal(*outputs)
    assert json.loads((tmp_path / "memory.ttac" / "manifest.json").read_text())["source"]["file"] == "model.onnx"


@pytest.mark.parametrize(
    ("model", "more", "problem"),
    [
        (3, {}, "`int` is no model"),
        (b"onnx", {}, "`bytes` is no model"),
        ("model.onnx", {"example": np.zeros(3)}, "only a PyTorch module takes an example"),
    ],
)
def test_other_models_are_refused(model: Any, more: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=problem):
        ttac.compile(model, output=tmp_path / "b.ttac", **more)


def test_a_module_of_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    nn = torch.nn
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    net.train()
    with pytest.raises(UsageError, match="needs an example"):
        ttac.compile(net, output=tmp_path / "b.ttac")
    example = torch.randn(1, 3, 8, 8)
    ttac.compile(net, example=example, method="source", batch=4, output=tmp_path / "b.ttac")
    assert net.training and net[1].training
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = net.eval()(x).numpy()
    np.testing.assert_allclose(ttac.load(tmp_path / "b.ttac").step(x.numpy()), expected, rtol=1e-4, atol=1e-5)
    tent = ttac.compile(net, example=example, output=tmp_path / "t.ttac", **OPTIONS)
    assert [site["kind"] for site in tent.manifest["sites"]] == ["batch"]


def test_a_module_that_cannot_be_exported(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")

    class Odd(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            raise ValueError("no such thing")

    with pytest.raises(UnsupportedError, match="PyTorch cannot export the module"):
        ttac.compile(Odd(), example=torch.zeros(2, 3), output=tmp_path / "b.ttac")
