"""The conformance kit in JavaScript: on onnxruntime-node, and on onnxruntime-web under node and in Chromium."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.conformance_kit.table import in_chromium
from tests.support import chromium
from ttac.runtime import load

PACKAGE = Path(__file__).resolve().parents[2] / "consumers" / "js"
INSTALLED = (PACKAGE / "node_modules" / ".ready").exists() and shutil.which("node") is not None

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not INSTALLED, reason="install node and npm, then run `make test` for its packages"),
]
browser = pytest.mark.skipif(not chromium.found(), reason="install chromium")

STEP = """
import * as ort from "onnxruntime-node";
import { open } from "./src/index.js";
import { bundle, saveState } from "./src/node.js";
const adapter = await open(bundle(process.argv[1]), ort);
const x = new ort.Tensor("float32", Float32Array.from({ length: 6 * 192 }, (_, i) => Math.sin(i)), [6, 3, 8, 8]);
await adapter.step({ x });
await saveState(adapter, process.argv[2]);
"""


def node(*words: str, **environment: str) -> str:
    """Return the output of node in the package's folder."""
    command = ["node", *words]
    done = subprocess.run(
        command, cwd=PACKAGE, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_kit_passes_under_node(kit: Path) -> None:
    lines = node("--test", "--test-reporter=tap", "test/kit.test.js", TTAC_KIT=str(kit)).splitlines()
    assert "# pass 3" in lines and "# skipped 0" in lines
    assert sum("onnxruntime" in line and '"cases":' in line for line in lines) == 2


@browser
def test_the_kit_passes_in_chromium(kit: Path) -> None:
    result = in_chromium(kit)
    cases = json.loads((kit / "kit.json").read_text(encoding="utf-8"))
    assert result.get("error") is None and result["worst"] < 1e-5
    assert result["cases"] == len(cases["cases"]) and result["refused"] == len(cases["refused"])


def test_python_restores_a_state_that_javascript_saved(kit: Path, tmp_path: Path) -> None:
    bundle, saved = kit / "bundles" / "method-tent", tmp_path / "state.safetensors"
    node("--input-type=module", "-e", STEP, str(bundle), str(saved))
    adapter, x = load(bundle), np.sin(np.arange(6 * 192)).astype(np.float32).reshape(6, 3, 8, 8)
    adapter.restore(saved)
    other = load(bundle)
    other.step(x)
    other.save(tmp_path / "python.safetensors")
    ours, theirs = load_file(tmp_path / "python.safetensors"), load_file(saved)
    for name, expected in ours.items():
        np.testing.assert_allclose(theirs[name], expected, rtol=1e-5, atol=1e-5)
    assert set(theirs) == set(ours)


def test_the_types_accept_both_engines() -> None:
    node("node_modules/typescript/bin/tsc", "--noEmit", "-p", "test")
