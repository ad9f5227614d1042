"""Every architecture by every exporter with every method: compiled, run, its gradient checked, its step timed.

`python -m benchmarks.model_matrix DIR [NAMES]` takes the files that `benchmarks.model_matrix_export DIR` wrote, adds a
line to `DIR/cells.jsonl` for each cell that is not there yet, and writes `docs/model-matrix.md` from all of them.
`DIR/cells.jsonl` may be kept: an interrupted run goes on where it was.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from safetensors.numpy import load_file

import ttac
from benchmarks.model_matrix_table import write_table
from ttac import driver, finish
from ttac.errors import TtacError
from ttac.passes.execute import Executable

METHODS = ("tent", "bn", "sar", "eata")
PAIRS, THREADS = 5, 1
CALIBRATION = 32
Arrays = dict[str, np.ndarray]


def cell(path: Path, method: str, folder: Path) -> dict[str, Any]:
    """What happened to one file with one method."""
    peers = dict(np.load(path.parent / "peers.npz"))
    x = peers["x"]
    row: dict[str, Any] = {"model": path.parent.name, "exporter": path.stem, "method": method}
    bundle = folder / "cell.ttac"
    said: list[str] = []
    start = time.perf_counter()
    try:
        made = ttac.compile(
            path, method=method, batch=len(x), calibration=calibration(x), output=bundle, say=said.append
        )
        row["seconds"] = time.perf_counter() - start
        row["verified"] = made.report["verified"]
        row["inserted"] = any("get a norm from calibration data" in line for line in said)
        row |= steps(bundle, peers, path)
        row |= compared(bundle, x, peers) if method != "bn" else {}
        row["outcome"] = "ran"
    except TtacError as error:
        row |= {"outcome": "refused", "code": error.exit_code, "reason": str(error)}
    except Exception:
        row |= {"outcome": "crashed", "reason": traceback.format_exc()}
    shutil.rmtree(bundle, ignore_errors=True)
    return row


def calibration(x: np.ndarray) -> np.ndarray:
    """Source samples: noise of the same kind, for files whose norms were folded away."""
    return np.random.default_rng(0).standard_normal((CALIBRATION, *x.shape[1:]), dtype=np.float32)


def steps(bundle: Path, peers: Arrays, source: Path) -> dict[str, Any]:
    """Two steps, one of a smaller batch, and the time of a step against inference of the source file.

    Also how far that file, run as it is, and the first step are from what PyTorch computes.
    """
    x = peers["x"]
    adapter = ttac.load(bundle, threads=THREADS)
    logits = [adapter.step(x), adapter.step(x), adapter.step(x[:3])]
    if not all(np.isfinite(values).all() for values in logits):
        raise AssertionError("a step gave numbers that are not finite")
    plain, parts = engine(source), batches(source, x)
    found = np.concatenate([plain.run(None, {"x": part})[0] for part in parts])
    file = float(np.abs(found - peers["logits"]).max() / np.abs(peers["logits"]).max())
    ratios = []
    for _ in range(PAIRS):
        start = time.perf_counter()
        for part in parts:
            plain.run(None, {"x": part})
        middle = time.perf_counter()
        adapter.step(x)
        ratios.append((time.perf_counter() - middle) / (middle - start))
    adapted = float(np.abs(logits[0] - peers["adapted"]).max() / np.abs(peers["adapted"]).max())
    return {"ratio": float(np.median(ratios)), "file": file, "adapted": adapted}


def engine(source: Path) -> ort.InferenceSession:
    """The source file on the plain engine."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 4
    faulty = ["MatMul_BatchNormalization_Fusion"]  # onnxruntime 1.19 does not load LeViT with it
    return ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=faulty)


def batches(source: Path, x: np.ndarray) -> list[np.ndarray]:
    """The samples as many at a time as the file takes."""
    fixed = engine(source).get_inputs()[0].shape[0]
    return [x] if not isinstance(fixed, int) else [x[i : i + fixed] for i in range(0, len(x), fixed)]


def compared(bundle: Path, x: np.ndarray, peers: Arrays) -> dict[str, Any]:
    """The gradients of the mean entropy against PyTorch's, as far as norms carry PyTorch's names."""
    found = gradients(bundle, x)
    wanted = {key.removeprefix("gradient/"): value for key, value in peers.items() if key.startswith("gradient/")}
    wanted = {f"{k.removesuffix('.weight')}.scale" if k.endswith(".weight") else k: v for k, v in wanted.items()}
    same = [key for key in found if key in wanted and found[key].size == wanted[key].size]
    length = np.sqrt(sum(float((wanted[key] ** 2).sum()) for key in same))
    if not same or not length:
        return {"compared": 0, "trained": len(found)}
    apart = np.sqrt(sum(float(((found[key].reshape(-1) - wanted[key].reshape(-1)) ** 2).sum()) for key in same))
    return {"compared": len(same), "trained": len(found), "gradient": float(apart / length)}


def gradients(bundle: Path, x: np.ndarray) -> Arrays:
    """The gradients by parameter that the bundle's own graphs compute, every sample counting the same."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    values: Arrays = {**load_file(bundle / "weights.safetensors"), **load_file(bundle / manifest["state"]["file"])}
    values[manifest["inputs"][0]["name"]] = x
    values["sample.weights"] = np.full(len(x), 1 / len(x), np.float32)
    stages = [name for name in manifest["graphs"] if name.split("-")[0] == "backward"]
    for name in ("forward", *sorted(stages)):
        values |= Executable(bundle / manifest["graphs"][name]["file"])(values)
    return {key.removesuffix(".grad"): value for key, value in values.items() if key.endswith(".grad")}


def rows(root: Path, names: Sequence[str], exporters: Sequence[str]) -> None:
    """Fill in the cells that are missing."""
    record = root / "cells.jsonl"
    known = {(r["model"], r["exporter"], r["method"]) for r in recorded(record)}
    with tempfile.TemporaryDirectory() as name, patch.object(finish, "measure", return_value=None):
        for path in [root / model / f"{kind}.onnx" for model in names for kind in exporters]:
            missing = [m for m in METHODS if (path.parent.name, path.stem, m) not in known]
            if not path.is_file() or not missing:
                continue
            with shared_rooms():
                for method in missing:
                    row = cell(path, method, Path(name))
                    with record.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(row["model"], row["exporter"], method, row["outcome"], flush=True)


def shared_rooms() -> Any:
    """Loading and normalising are the same for all methods on a file: done once."""
    load, normalise = functools.cache(driver.load), driver.normalise
    normal: list[ir.Model] = []

    def normalised(model: ir.Model, **choices: Any) -> ir.Model:
        if not normal:
            normal.append(normalise(model, **choices))
        return normal[0].clone()

    def loaded(path: Path, **choices: Any) -> ir.Model:
        return load(path, **{key: value for key, value in choices.items() if key != "say"})

    return patch.multiple(driver, load=loaded, normalise=normalised)


def recorded(path: Path) -> list[dict[str, Any]]:
    """The cells of a record; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    warnings.filterwarnings("ignore")
    root = Path(sys.argv[1])
    names = sys.argv[2:] or sorted(path.parent.name for path in root.glob("*/done.json"))
    from benchmarks.model_matrix_export import EXPORTERS

    rows(root, names, list(EXPORTERS))
    write_table(Path(__file__).parents[1] / "docs" / "model-matrix.md", root, recorded(root / "cells.jsonl"))


if __name__ == "__main__":
    main()
