"""The library as a whole: its version, its refusals, and the package around it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ttac_kernels", reason="needs ttac-kernels (make kernels)")

import ttac_kernels

from tests.support.kernel_session import run

STOCK = os.environ.get("TTAC_STOCK_ORT", "")
X = np.ones((1, 16, 2, 2), np.float32)
CHANNELS = np.ones(16, np.float32)


def test_the_library_reports_the_version_of_its_package() -> None:
    library = ctypes.CDLL(str(ttac_kernels.library_path()))
    library.ttac_kernels_version.restype = ctypes.c_char_p
    assert library.ttac_kernels_version().decode() == ttac_kernels.__version__


def test_the_package_knows_the_digest_of_its_library() -> None:
    content = ttac_kernels.library_path().read_bytes()
    assert ttac_kernels.library_digest() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"block": 5}, "attribute block: not 1, 2, 4, 8 or 16"),
        ({"block": 1, "act": "tanh"}, "there is no activation tanh"),
    ],
)
def test_a_bad_attribute_is_refused_with_its_name(attributes: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message):
        run("NormForward", {"x": X, "scale": CHANNELS, "bias": CHANNELS}, ["y"], attributes)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": CHANNELS[:3]}, "input scale: not one number for each channel"),
        ({"x": X[:, :15]}, "no multiple of the block"),
        ({"residual": X[:, :, :1]}, "input residual: not of the shape of x"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changed: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(Exception, match=message):
        run("NormForward", {"x": X, "scale": CHANNELS, "bias": CHANNELS, **changed}, ["y"], {"block": 16})


@pytest.mark.skipif(not STOCK, reason="needs TTAC_STOCK_ORT, the folder of another onnxruntime")
def test_another_engine_runs_the_same_library() -> None:
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([STOCK, str(root), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "benchmarks.kernel_fuzz", "--shapes", "50"]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
