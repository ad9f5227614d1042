"""The conformance kit in Python, on the engine of this environment and on a stock engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.conformance_kit.check import check
from benchmarks.conformance_kit.methods import METHODS
from ttac.methods import names

STOCK = os.environ.get("TTAC_STOCK_ORT", "")
ROOT = Path(__file__).resolve().parents[2]
WORDS = {"run", "when", "repeat", "reset", "return", "rows", "feed", "only", "deferred", "otherwise"}
ROLES = {"parameter", "optimizer", "statistic", "counter", "sparsity"}
DTYPES = {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool"}

pytestmark = pytest.mark.slow


def manifests(kit: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(kit.glob("bundles/*/manifest.json"))]


def keys(value: Any) -> set[str]:
    """Return every key of the objects inside a JSON value."""
    if isinstance(value, dict):
        return {*value, *(key for entry in value.values() for key in keys(entry))}
    return {key for entry in value for key in keys(entry)} if isinstance(value, list) else set()


def test_the_kit_passes(kit: Path) -> None:
    assert check(kit) < 1e-5


@pytest.mark.skipif(not STOCK, reason="set TTAC_STOCK_ORT to a folder with a stock onnxruntime")
def test_the_kit_passes_on_the_stock_engine(kit: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.conformance_kit.check", str(kit)]
    environment = {**os.environ, "PYTHONPATH": STOCK}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "bundles refused, largest difference" in done.stdout


def test_a_wrong_number_fails(kit: Path, tmp_path: Path) -> None:
    case = next(case for case in json.loads((kit / "kit.json").read_text())["cases"] if case["name"] == "rows")
    (tmp_path / "tensors").mkdir()
    (tmp_path / "bundles").symlink_to(kit / "bundles")
    tensors = load_file(kit / case["tensors"])
    tensors["1/state/level"] += np.float32(1e-4)
    save_file(tensors, tmp_path / case["tensors"])
    (tmp_path / "kit.json").write_text(json.dumps({"tolerance": 1e-5, "cases": [case], "refused": []}))
    with pytest.raises(AssertionError, match="case rows, call 1 differs"):
        check(tmp_path)


def test_every_method_has_a_case() -> None:
    assert {options["method"] for options in METHODS.values()} == set(names())


def test_the_kit_has_every_word_role_and_dtype(kit: Path) -> None:
    found = manifests(kit)
    assert WORDS <= {key for manifest in found for key in keys(manifest["programs"])}
    tensors = [tensor for manifest in found for tensor in manifest["state"]["tensors"]]
    assert {tensor["role"] for tensor in tensors} == ROLES
    assert {tensor["dtype"] for tensor in tensors} == DTYPES
