"""Install `ttac-runtime` beside an onnxruntime that is there, in a clean environment of each Python, and run a bundle.

    python -m benchmarks.slim_install [--only 3.12]

It prints a row for each Python from 3.9 to 3.14: the engine before and after the installation, the packages that came
with it, and the largest difference of the answers from this environment's.  A Python that is not on PATH has a row that
says so.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import ttac
from ttac.demo import file

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
ENGINES = {"3.9": "1.19.2", "3.14": "1.24.1"}
"""Engine of a Python for which `ENGINE` has no wheels."""
ENGINE = "1.20.1"

RUN = """
import sys
import numpy as np
import ttac
adapter = ttac.load("model.ttac", threads=1)
np.save("found.npy", [adapter.step(x) for x in np.load("inputs.npy")])
"""


def bundle_and_answers(place: Path) -> np.ndarray:
    """Write a bundle and inputs to `place`; return the answers of three steps."""
    ttac.compile(file("fashion_resnet_bn_unfolded.onnx"), method="tent", output=place / "model.ttac")
    inputs = np.random.default_rng(0).standard_normal((3, 16, 1, 28, 28), np.float32)
    np.save(place / "inputs.npy", inputs)
    adapter = ttac.load(place / "model.ttac", threads=1)
    return np.array([adapter.step(x) for x in inputs])


def row(version: str, place: Path, expected: np.ndarray) -> str:
    """The row of a Python, as Markdown."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        return f"| {version} | not on this machine | | | |"
    venv = place / version
    subprocess.run([python, "-m", "venv", venv], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", f"onnxruntime=={ENGINES.get(version, ENGINE)}"], check=True)
    before = _packages(pip)
    done = subprocess.run([*pip, "install", "--quiet", _tree(place)], capture_output=True, text=True)
    if done.returncode:
        reason = next(line for line in done.stderr.splitlines() if line.startswith("ERROR: "))
        return f"| {version} | {before['onnxruntime']} | refused: {reason.removeprefix('ERROR: ')} | | |"
    after = _packages(pip)
    added = ", ".join(sorted(set(after) - set(before)))
    subprocess.run([venv / "bin" / "python", "-c", RUN], cwd=place, check=True)
    worst = np.abs(np.load(place / "found.npy") - expected).max()
    return f"| {version} | {before['onnxruntime']} | {after['onnxruntime']} | {added} | {worst:.1e} |"


def _tree(place: Path) -> str:
    """A copy of the tree without builds; return the folder of the distribution."""
    if not (place / "tree").exists():
        kept = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
        for name in ("ttac", "runtime"):
            shutil.copytree(ROOT / name, place / "tree" / name, ignore=kept)
    return str(place / "tree" / "runtime")


def _packages(pip: list[str]) -> dict[str, str]:
    lines = subprocess.run([*pip, "list", "--format", "freeze"], capture_output=True, text=True, check=True).stdout
    return dict(line.split("==") for line in lines.split() if "==" in line)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slim_install", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PYTHONS, help="one Python")
    only = parser.parse_args().only
    print("| Python | onnxruntime before | onnxruntime after | packages that came | largest difference |")
    print("|---|---|---|---|---:|")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        expected = bundle_and_answers(place)
        for version in PYTHONS:
            if only in (None, version):
                print(row(version, place, expected), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
