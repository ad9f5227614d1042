"""Every architecture by every exporter with every method: compiled, run, its gradient checked, its step timed.

`python -m benchmarks.model_matrix DIR [NAMES]` takes the files that `benchmarks.model_matrix_export DIR` and
`benchmarks.model_matrix_keras DIR` wrote, adds a line to `DIR/cells.jsonl` for each cell that is not there yet, and
writes `docs/model-matrix.md` from all of them.  `DIR/cells.jsonl` may be kept: an interrupted run goes on where it was.
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
    """What happened to one file with one method."""
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
        row |= compared(bundle, x, peers) if made.report["verified"]["slope"] is not None else {}
        row["outcome"] = "ran"
    except TtacError as error:
        row |= {"outcome": "refused", "code": error.exit_code, "reason": str(error)}
    except Exception:
        row |= {"outcome": "crashed", "reason": traceback.format_exc()}
    shutil.rmtree(bundle, ignore_errors=True)
    return row


def as_taken(peers: Arrays, path: Path) -> Arrays:
    """The peers with inputs as the file takes them: TensorFlow's channels come last, an exporter may move them."""
    taken = engine(path).get_inputs()[0].shape[1:]
    if list(peers["x"].shape[1:]) == taken:
        return peers
    moved = {key: np.ascontiguousarray(np.moveaxis(peers[key], -1, 1)) for key in ("x", "calibration") if key in peers}
    return {**peers, **moved}


def calibration(peers: Arrays) -> np.ndarray:
    """Source samples, for files whose norms were folded away: those of the peers, else noise of the same kind."""
    if "calibration" in peers:
        return peers["calibration"]
    x = peers["x"]
    return np.random.default_rng(0).standard_normal((CALIBRATION, *x.shape[1:]), dtype=np.float32)


def steps(bundle: Path, peers: Arrays, source: Path) -> dict[str, Any]:
    """Two steps, one of a smaller batch, and the time of a step against inference of the source file.

    Also how far that file, run as it is, and the first step are from what PyTorch or Keras computes.
    """
    x = peers["x"]
    adapter = ttac.load(bundle, threads=THREADS)
    logits = [adapter.step(x), adapter.step(x), adapter.step(x[:3])]
    if not all(np.isfinite(values).all() for values in logits):
        raise AssertionError("a step gave numbers that are not finite")
    plain, parts = engine(source), batches(source, x)
    first, *others = plain.get_inputs()
    # Keras' exporter lists captured constants as inputs, though it folded what read them.
    unread = {value.name: np.zeros(value.shape, np.float32) for value in others}
    found = np.concatenate([plain.run(None, {first.name: part, **unread})[0] for part in parts])
    file = float(np.abs(found - peers["logits"]).max() / np.abs(peers["logits"]).max())
    ratios = []
    for _ in range(PAIRS):
        start = time.perf_counter()
        for part in parts:
            plain.run(None, {first.name: part, **unread})
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
    """The gradients of the mean entropy against the framework's, as far as norms carry its names."""
    found = gradients(bundle, x)
    wanted = {key.removeprefix("gradient/"): value for key, value in peers.items() if key.startswith("gradient/")}
    pairs = {key: partner(key, wanted) for key in found}
    # A parameter over several axes has them in another order where the channels are.
    ours = {
        key: other for key, other in pairs.items() if other in wanted and ("/" not in other or wanted[other].ndim == 1)
    }
    same = [key for key, other in ours.items() if found[key].size == wanted[other].size]
    length = np.sqrt(sum(float((wanted[pairs[key]] ** 2).sum()) for key in same))
    if not same or not length:
        return {"compared": 0, "trained": len(found)}
    apart = np.sqrt(sum(float(((found[k].reshape(-1) - wanted[pairs[k]].reshape(-1)) ** 2).sum()) for k in same))
    return {"compared": len(same), "trained": len(found), "gradient": float(apart / length)}


def partner(key: str, wanted: Sequence[str] | Arrays) -> str:
    """The framework's name for a parameter of ours; empty if there is none, or more than one.

    `layer1.bn1.scale` is `layer1.bn1.weight` in PyTorch.  In `model.bn1n_1.scale` of TensorFlow, `bn1n` is the layer
    and what follows counts its uses.
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
    """The gradients by parameter that the bundle's own graphs compute, every sample counting the same."""
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
    """The shape of what weighs samples, or the pixels of a dense head; [N] where a method weighs nothing."""
    for graph in manifest["graphs"].values():
        for value in onnx.load(str(bundle / graph["file"]), load_external_data=False).graph.input:
            if value.name == "sample.weights":
                return [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    return [0]


def rows(root: Path, names: Sequence[str], exporters: Sequence[str], methods: Sequence[str] = METHODS) -> None:
    """Fill in the cells that are missing."""
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
