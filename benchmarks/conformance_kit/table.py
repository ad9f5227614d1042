"""Run the conformance kit in every reader, on every engine, and print the table of docs/consumers.md.

    python -m benchmarks.conformance_kit.table [KIT]

Stock engines come from PyPI, into `build/engines`.  C++ needs cmake, a compiler and nlohmann-json.  JavaScript needs
node and `make test`, which installs its engines.  A reader whose tools are missing has a row that names them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.conformance_kit.__main__ import write_kit
from tests.support import chromium

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ROOT / "build" / "engines"
JAVASCRIPT = ROOT / "consumers" / "js"
STOCK = ("1.18.1", "1.23.2", "newest")
"""Stock engines, beside the engine of this environment."""

HEAD = """| reader | engine | cases | calls | refused bundles | largest difference |
|---|---|---:|---:|---:|---:|"""

Row = tuple[str, str, str]
"""Reader, engine, and the other columns."""


def engine(version: str) -> Path:
    """Return the folder of a stock engine; the first call installs it."""
    folder = ENGINES / version
    if not (folder / "onnxruntime").exists():
        packages = ["onnxruntime" if version == "newest" else f"onnxruntime=={version}"]
        packages += ["numpy>=1.26,<2"] if version.startswith("1.18") else []  # the last release for numpy 1 alone
        _output([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *packages])
    return folder


def python(kit: Path) -> Iterator[Row]:
    """The rows of the Python reader: the engine of this environment, and the stock engines."""
    for path in ("", *(str(engine(version)) for version in STOCK)):
        command = [sys.executable, "-m", "benchmarks.conformance_kit.check", str(kit)]
        line = _output(command, environment={"PYTHONPATH": path} if path else {}).splitlines()[-1]
        version, _, counts = line.removeprefix("onnxruntime ").partition(": ")
        yield "Python, `ttac.runtime`", f"onnxruntime {version}", _columns(counts)


def cpp(kit: Path) -> Iterator[Row]:
    """The rows of the C++ reader, on every shared library of the stock engines and of npm's package."""
    arch = {"x86_64": "x64", "aarch64": "arm64"}[os.uname().machine]
    libraries = [path for version in STOCK for path in engine(version).glob("onnxruntime/capi/libonnxruntime.so.*")]
    libraries += JAVASCRIPT.glob(f"node_modules/onnxruntime-node/bin/*/linux/{arch}/libonnxruntime.so.1")
    with tempfile.TemporaryDirectory() as build:
        for library in libraries:
            options = ["-DCMAKE_BUILD_TYPE=Release", f"-DONNXRUNTIME={library}"]
            _output(["cmake", "-S", str(ROOT / "consumers" / "cpp"), "-B", build, *options])
            _output(["cmake", "--build", build, "--parallel", "2"])
            counts = _output([f"{build}/ttac-kit", str(kit)])
            version = re.search(rb"VERS_(\d+\.\d+\.\d+)", library.read_bytes())
            assert version is not None
            yield "C++, `consumers/cpp`", f"onnxruntime {version[1].decode()}", _columns(counts)


def node(kit: Path) -> Iterator[Row]:
    """The rows of the JavaScript reader under node."""
    command = ["node", "--test", "--test-reporter=tap", "test/kit.test.js"]
    for line in _output(command, JAVASCRIPT, {"TTAC_KIT": str(kit)}).splitlines():
        if (found := re.match(r"# (onnxruntime-(?:node|web)) ([\d.]+): (\{.*)", line)) is not None:
            wasm = " (WebAssembly) under node" if found[1].endswith("web") else ""
            yield "JavaScript, `consumers/js`", f"{found[1]} {found[2]}{wasm}", _json_columns(json.loads(found[3]))


def browser(kit: Path) -> Iterator[Row]:
    """The row of the JavaScript reader in Chromium."""
    result = in_chromium(kit)
    version = _output([chromium.found(), "--version"]).split()[1].partition(".")[0]
    engine = f"onnxruntime-web {result['engine']} (WebAssembly) in Chromium {version}"
    yield "JavaScript, `consumers/js`", engine, _json_columns(result)


def in_chromium(kit: Path) -> Mapping[str, object]:
    """Return the counts of the kit in a headless Chromium, or its `error`."""
    folders = {"js": JAVASCRIPT, "kit": kit, "ort": JAVASCRIPT / "node_modules" / "onnxruntime-web" / "dist"}
    with chromium.served(folders) as address, chromium.page() as page:
        page.open(f"{address}/js/test/kit.html")
        result: Mapping[str, object] = json.loads(page.wait("document.querySelector('#result')?.textContent", 300))
    return result


READERS: dict[str, tuple[Callable[[Path], Iterator[Row]], Callable[[], bool]]] = {
    "Python": (python, lambda: True),
    "C++ (cmake)": (cpp, lambda: shutil.which("cmake") is not None),
    "node (node, and `make test`)": (node, lambda: (JAVASCRIPT / "node_modules" / ".ready").exists()),
    "Chromium (chromium, and `make test`)": (
        browser,
        lambda: bool(chromium.found()) and (JAVASCRIPT / "node_modules" / ".ready").exists(),
    ),
}
"""Reader with its tools -> its rows, and whether the tools are there."""


def _columns(counts: str) -> str:
    """The columns of a line such as `54 cases, 364 calls, 113 bundles refused, largest difference 1.3e-06`."""
    found = re.search(r"(\d+) cases, (\d+) calls, (\d+) bundles refused, largest difference (\S+)", counts)
    assert found is not None, counts
    return f"{found[1]} | {found[2]} | {found[3]} | {float(found[4]):.1e}"


def _json_columns(result: Mapping[str, object]) -> str:
    assert "worst" in result, result
    return f"{result['cases']} | {result['calls']} | {result['refused']} | {result['worst']:.1e}"


def _output(command: list[str], folder: Path = ROOT, environment: Mapping[str, str] | None = None) -> str:
    environment = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    """Print the table for the kit of the first argument; without it, for a new kit."""
    with tempfile.TemporaryDirectory() as place:
        kit = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(place) / "kit"
        if not kit.exists():
            write_kit(kit)
        print(HEAD)
        for name, (rows, there) in READERS.items():
            for reader, engine_name, columns in (
                rows(kit) if there() else [(name, "tools are missing", "- | - | - | -")]
            ):
                print(f"| {reader} | {engine_name} | {columns} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
