"""The conformance kit in C++, built with checks of addresses and undefined behaviour."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "consumers" / "cpp"
STOCK = Path(os.environ.get("TTAC_STOCK_ORT", "/nowhere"))
NODE = ROOT / "consumers" / "js" / "node_modules" / "onnxruntime-node" / "bin"
MOST_LINES = 700
"""Most lines of the source file."""

pytestmark = pytest.mark.slow


def engines() -> list[Path]:
    """Return the shared libraries of onnxruntime on this machine: of the stock wheel, and of npm's package."""
    arch = {"x86_64": "x64", "aarch64": "arm64"}.get(os.uname().machine, "none")
    found = STOCK.glob("onnxruntime/capi/libonnxruntime.so.*"), NODE.glob(f"*/linux/{arch}/libonnxruntime.so.1")
    return [path for paths in found for path in paths]


def has_json() -> bool:
    return any((Path(folder) / "nlohmann" / "json.hpp").exists() for folder in ("/usr/include", "/usr/local/include"))


def cmake(*words: str) -> None:
    done = subprocess.run(["cmake", *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr


@pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("c++") and has_json()),
    reason="install cmake, a C++ compiler and nlohmann-json",
)
@pytest.mark.skipif(not engines(), reason="set TTAC_STOCK_ORT to a folder with a stock onnxruntime")
def test_the_kit_passes_on_every_engine(kit: Path, tmp_path: Path) -> None:
    for engine in engines():  # each further engine only needs a link
        options = ["-DSANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug", f"-DONNXRUNTIME={engine}"]
        cmake("-S", str(SOURCE), "-B", str(tmp_path), *options)
        cmake("--build", str(tmp_path), "--parallel", "2")
        # onnxruntime 1.30 itself leaks 14 bytes.
        environment = {**os.environ, "ASAN_OPTIONS": f"detect_leaks={int(STOCK in engine.parents)}"}
        command = [tmp_path / "ttac-kit", kit]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{engine}: {done.stderr}"
        assert "bundles refused, largest difference" in done.stdout


def test_the_source_stays_short() -> None:
    assert len((SOURCE / "ttac.cpp").read_text(encoding="utf-8").splitlines()) <= MOST_LINES
