"""Every architecture from every exporter with every method: compiled, run, gradients checked, steps timed.

`python -m benchmarks.model_matrix DIR [NAMES]` reads the files of `benchmarks.model_matrix_export DIR` and
`benchmarks.model_matrix_keras DIR`.  It adds a line to `DIR/cells.jsonl` for each missing cell, and writes
`docs/model-matrix.md` from all cells.  An interrupted run goes on where it stopped if `DIR/cells.jsonl` is kept.
`--methods tent,bn` and `--exporters legacy-17` run a part.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from safetensors.numpy import load_file

import ttac
from benchmarks.model_matrix_folders import DONE
from benchmarks.model_matrix_table import EXPORTERS, METHODS, write_table
from ttac import finish
from ttac import pipeline as driver
from ttac.errors import TtacError
from ttac.passes.graph.execute import Executable

PAIRS, THREADS = 5, 1
CALIBRATION = 32
Arrays = dict[str, np.ndarray]


def cell(path: Path, method: str, folder: Path) -> dict[str, Any]:
    """Compile, run and compare one file with one method, and return the figures or the reason of the failure."""
    peers = as_taken(dict(np.load(path.parent / "peers.npz")), path)
    x = peers["x"]
    row: dict[str, Any] = {"model": path.parent.name, "exporter": path.stem, "method": method}
    bundle = folder / "cell.ttac"
    said: list[str] = []
    start = time.perf_counter()
    try:
        made = ttac.compile(
            path, method=method, batch=len(x), calibration=calibration(peers), output=bundle, say=said.append
        )
        row["seconds"] = time.perf_counter() - start
        row["verified"] = made.report["verified"]
        row["inserted"] = any("get a norm from calibration data" in line for line in said)
        row |= steps(bundle, peers, path)
        row |= compared(bundle, x, peers) if made.report["verified"]["derivative"] is not None else {}
        row["outcome"] = "ran"
    except TtacError as error:
        row |= {"outcome": "refused", "code": error.exit_code, "reason": str(error)}
    except Exception:
        row |= {"outcome": "crashed", "reason": traceback.format_exc()}
    shutil.rmtree(bundle, ignore_errors=True)
    return row


def as_taken(peers: Arrays, path: Path) -> Arrays:
    """Return the peers with the channel axis where the file has it: TensorFlow's is last, an exporter may move it."""
    taken = engine(path).get_inputs()[0].shape[1:]
    if list(peers["x"].shape[1:]) == taken:
        return peers
    moved = {key: np.ascontiguousarray(np.moveaxis(peers[key], -1, 1)) for key in ("x", "calibration") if key in peers}
    return {**peers, **moved}


def calibration(peers: Arrays) -> np.ndarray:
    """Return source samples for files with folded norms: those of the peers, or noise of the same distribution."""
    if "calibration" in peers:
        return peers["calibration"]
    x = peers["x"]
    return np.random.default_rng(0).standard_normal((CALIBRATION, *x.shape[1:]), dtype=np.float32)


def steps(bundle: Path, peers: Arrays, source: Path) -> dict[str, Any]:
    """Run two steps and one of a smaller batch; return the time ratio of a step to inference of the source file.

    The row also has the distances of the source file's logits and of the first step's from those of PyTorch or Keras.
    """
    x = peers["x"]
    adapter = ttac.load(bundle, threads=THREADS)
    logits = [adapter.step(x), adapter.step(x), adapter.step(x[:3])]
    if not all(np.isfinite(values).all() for values in logits):
        raise AssertionError("a step gave numbers that are not finite")
    session, parts = engine(source), batches(source, x)
    first, *others = session.get_inputs()
    # Keras' exporter lists captured constants as inputs, though it folded all their readers.
    unread = {value.name: np.zeros(value.shape, np.float32) for value in others}
    outputs = np.concatenate([session.run(None, {first.name: part, **unread})[0] for part in parts])
    file = float(np.abs(outputs - peers["logits"]).max() / np.abs(peers["logits"]).max())
    ratios = []
    for _ in range(PAIRS):
        start = time.perf_counter()
        for part in parts:
            session.run(None, {first.name: part, **unread})
        middle = time.perf_counter()
        adapter.step(x)
        ratios.append((time.perf_counter() - middle) / (middle - start))
    adapted = float(np.abs(logits[0] - peers["adapted"]).max() / np.abs(peers["adapted"]).max())
    return {"ratio": float(np.median(ratios)), "file": file, "adapted": adapted}


def engine(source: Path) -> ort.InferenceSession:
    """Return a session of the source file."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 4
    faulty = ["MatMul_BatchNormalization_Fusion"]  # onnxruntime 1.19 does not load LeViT with it
    return ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=faulty)


def batches(source: Path, x: np.ndarray) -> list[np.ndarray]:
    """Return the samples in batches of the size in the file."""
    fixed = engine(source).get_inputs()[0].shape[0]
    return [x] if not isinstance(fixed, int) else [x[i : i + fixed] for i in range(0, len(x), fixed)]


def compared(bundle: Path, x: np.ndarray, peers: Arrays) -> dict[str, Any]:
    """Compare the gradients of the mean entropy with the framework's, for the norms that have its names."""
    ours = gradients(bundle, x)
    theirs = {key.removeprefix("gradient/"): value for key, value in peers.items() if key.startswith("gradient/")}
    pairs = {key: partner(key, theirs) for key in ours}
    # A parameter over several axes has them in another order where the channels moved.
    named = {
        key: other for key, other in pairs.items() if other in theirs and ("/" not in other or theirs[other].ndim == 1)
    }
    same = [key for key, other in named.items() if ours[key].size == theirs[other].size]
    length = np.sqrt(sum(float((theirs[pairs[key]] ** 2).sum()) for key in same))
    if not same or not length:
        return {"compared": 0, "trained": len(ours)}
    apart = np.sqrt(sum(float(((ours[k].reshape(-1) - theirs[pairs[k]].reshape(-1)) ** 2).sum()) for k in same))
    return {"compared": len(same), "trained": len(ours), "gradient": float(apart / length)}


def partner(key: str, wanted: Sequence[str] | Arrays) -> str:
    """Return the framework's name for a parameter of ttac; empty if there is no such name, or more than one.

    `layer1.bn1.scale` is `layer1.bn1.weight` in PyTorch.  In `model.bn1n_1.scale` of TensorFlow, `bn1n` is the layer
    and the rest counts its uses.
    """
    site, _, role = key.rpartition(".")
    if role not in ("scale", "bias"):
        return ""
    torch = f"{site}.{'weight' if role == 'scale' else role}"
    if torch in wanted:
        return torch
    last, kinds = site.rpartition(".")[2].partition("@")[0], ("gamma", "scale") if role == "scale" else ("beta",)
    layers = [name.split("/") for name in wanted if "/" in name]
    fits = [f"{a}/{b}" for a, b in layers if b in kinds and re.fullmatch(rf"{re.escape(a)}(_\d+)?", last)]
    return fits[0] if len(fits) == 1 else ""


def gradients(bundle: Path, x: np.ndarray) -> Arrays:
    """Return the gradients by parameter from the graphs of the bundle, with equal weights for all samples."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    values: Arrays = {**load_file(bundle / "weights.safetensors"), **load_file(bundle / manifest["state"]["file"])}
    values[manifest["inputs"][0]["name"]] = x
    shape = [len(x), *_weights_shape(bundle, manifest)[1:]]
    values["sample.weights"] = np.full(shape, 1 / np.prod(shape), np.float32)
    stages = [name for name in manifest["graphs"] if name.split("-")[0] == "backward"]
    for name in ("forward", *sorted(stages)):
        values |= Executable(bundle / manifest["graphs"][name]["file"])(values)
    return {key.removesuffix(".grad"): value for key, value in values.items() if key.endswith(".grad")}


def _weights_shape(bundle: Path, manifest: dict[str, Any]) -> list[int]:
    """Return the shape of the weights of samples, or of pixels for a dense head; [0] for a method without weights."""
    for graph in manifest["graphs"].values():
        for value in onnx.load(str(bundle / graph["file"]), load_external_data=False).graph.input:
            if value.name == "sample.weights":
                return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return [0]


def rows(root: Path, names: Sequence[str], exporters: Sequence[str], methods: Sequence[str] = METHODS) -> None:
    """Compute the missing cells."""
    record = root / "cells.jsonl"
    known = {(r["model"], r["exporter"], r["method"]) for r in recorded(record)}
    with tempfile.TemporaryDirectory() as name, patch.object(finish, "measure", return_value=None):
        for path in [root / model / f"{kind}.onnx" for model in names for kind in exporters]:
            missing = [m for m in methods if (path.parent.name, path.stem, m) not in known]
            if not path.is_file() or not missing:
                continue
            with shared_rooms():
                for method in missing:
                    row = cell(path, method, Path(name))
                    with record.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(row["model"], row["exporter"], method, row["outcome"], flush=True)


def shared_rooms() -> Any:
    """Patch the driver so that all methods on a file share one load and one normal form."""
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
    """Return the cells of a record; empty where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS))
    parser.add_argument("--exporters", type=lambda text: text.split(","), default=list(EXPORTERS))
    given = parser.parse_args()
    root: Path = given.root
    names = given.names or sorted(path.parent.name for path in root.glob(f"*/{DONE}"))
    rows(root, names, given.exporters, given.methods)
    write_table(Path(__file__).parents[1] / "docs" / "model-matrix.md", root, recorded(root / "cells.jsonl"))


if __name__ == "__main__":
    main()
