"""Hand-made bundles for tests of the runtime: graphs as ONNX text, a few values of state, expected numbers in numpy."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from safetensors.numpy import save_file

from ttac.runtime.adapter import Adapter
from ttac.runtime.bundle import write_manifest

PLANNED = 4
HEAD = '<ir_version: 8, opset_import: ["" : 18]>\n'

GAIN = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)
"""The weight of the tiny models; in "ema" and "source" external data, in "trained" a graph input."""

SOURCE = """
source (float[N,3] x) => (float[N,2] logits) <float[3,2] gain> {
  h = MatMul(x, gain)
  logits = Relu(h)
}
"""

EMA = """
forward (float[N,3] x, float[3] mean, int64 count)
  => (float[N,2] logits, float[3] mean_next, int64 count_next, float spread)
  <float[3,2] gain, float keep = {0.75}, float give = {0.25}, int64 one = {1}, int64[1] rows = {0}>
{
  centred = Sub(x, mean)
  h = MatMul(centred, gain)
  logits = Relu(h)
  now = ReduceMean <keepdims = 0> (x, rows)
  old = Mul(mean, keep)
  new = Mul(now, give)
  mean_next = Add(old, new)
  count_next = Add(count, one)
  square = Mul(logits, logits)
  spread = ReduceMean <keepdims = 0> (square)
}
"""

TRAINED = {
    "forward": """
forward (float[N,3] x, float[3,2] gain, float[2] scale) => (float[N,2] logits, float[N,2] h) {
  h = MatMul(x, gain)
  logits = Mul(h, scale)
}
""",
    "backward": """
backward (float[N,2] logits, float[N,2] h) => (float[2] scale_grad, float loss) <int64[1] rows = {0}> {
  p = Mul(logits, h)
  scale_grad = ReduceMean <keepdims = 0> (p, rows)
  square = Mul(logits, logits)
  loss = ReduceMean <keepdims = 0> (square)
}
""",
    "update": """
update (float[2] scale, float[2] scale_grad) => (float[2] scale_next) <float rate = {0.5}> {
  change = Mul(scale_grad, rate)
  scale_next = Sub(scale, change)
}
""",
}

COUNTING = {
    "forward": """
forward (float[N,3] x, float level) => (float[N,3] logits) {
  logits = Add(x, level)
}
""",
    "raise": """
raise (float level) => (float level_next) <float one = {1}> {
  level_next = Add(level, one)
}
""",
    "double": """
double (float level) => (float level_next) {
  level_next = Add(level, level)
}
""",
    "measure": """
measure (float[N,3] x, float level) => (float gate, float samples) <float limit = {2.5}, int64 first = {0}> {
  gate = Sub(level, limit)
  shape = Shape(x)
  rows = Gather(shape, first)
  samples = Cast <to = 1> (rows)
}
""",
}
"""Graphs for programs of all words; `level` is the state, `logits` are x plus the level that was read."""

STEP = [{"run": "forward"}, {"return": ["logits"]}]
PREDICT = [{"run": "forward", "only": ["logits"]}, {"return": ["logits"]}]


def batch(n: int = PLANNED, seed: int = 0) -> np.ndarray:
    """Return n samples for the tiny models."""
    return np.random.default_rng(seed).standard_normal((n, 3), dtype=np.float32)


def state_of(adapter: Adapter) -> dict[str, np.ndarray]:
    """Return copies of the adapter's committed state."""
    return {name: array.copy() for name, array in adapter._state.arrays().items()}


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest of the folder."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def reseal(folder: Path, manifest: Mapping[str, Any] | None = None) -> None:
    """Write the manifest again, with the current hashes of the files."""
    write_manifest(folder, {key: value for key, value in (manifest or read(folder)).items() if key != "files"})


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


def with_external(model: onnx.ModelProto, name: str, array: np.ndarray, location: str, offset: int) -> onnx.ModelProto:
    """Return the model with the data of initializer `name` in a file."""
    others = [tensor for tensor in model.graph.initializer if tensor.name != name]
    tensor = onnx.TensorProto(name=name, data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": array.nbytes}.items():
        tensor.external_data.add(key=key, value=str(value))
    del model.graph.initializer[:]
    model.graph.initializer.extend([*others, tensor])
    return model


def offset_of(path: Path) -> int:
    """Return the offset of the data in a safetensors file."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def manifest_of(
    graphs: Mapping[str, Mapping[str, Any]],
    state: Mapping[str, tuple[np.ndarray, str]],
    step: Sequence[Mapping[str, Any]],
    outputs: int,
) -> dict[str, Any]:
    """Return a manifest without `files`, which `write_manifest` adds."""
    return {
        "format": 3,
        "ttac": "0.1.0",
        "method": {"name": "tiny", "settings": {"lr": 0.5}},
        "target": {"name": "cpu", "engine": "onnxruntime", "opset": 18, "ir_version": 8, "threads": 1},
        "source": {"file": "tiny.onnx", "sha256": hashlib.sha256(SOURCE.encode()).hexdigest()},
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 3]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["N", outputs]}],
        "head": {"output": "logits", "kind": "classes", "axis": 1, "values": "logits"},
        "batch": {"planned": PLANNED, "smallest": 1},
        "preprocessing": None,
        "state": {
            "file": "state.safetensors",
            "tensors": [
                {"name": name, "dtype": str(array.dtype), "shape": list(array.shape), "role": role}
                for name, (array, role) in state.items()
            ],
        },
        "sites": [],
        "graphs": {name: {"file": f"{name}.onnx", "state": {}, "stats": {}, **entry} for name, entry in graphs.items()},
        "programs": copy.deepcopy({"step": step, "predict": PREDICT}),
        "memory": {},
        "verified": {},
        "executed_on": [],
    }


def write_bundle(
    folder: Path,
    models: Mapping[str, onnx.ModelProto],
    state: Mapping[str, tuple[np.ndarray, str]],
    manifest: Mapping[str, Any],
) -> Path:
    """Write graphs, state and manifest into the folder of the weights."""
    for name, model in models.items():
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    save_file({name: array for name, (array, _) in state.items()}, folder / "state.safetensors")
    write_manifest(folder, manifest)
    return folder


def ema(folder: Path) -> Path:
    """Write a bundle of one graph that subtracts and updates a running mean; the weight is external data."""
    folder.mkdir()
    save_file({"gain": GAIN}, folder / "weights.safetensors")
    start = offset_of(folder / "weights.safetensors")
    texts = {"forward": EMA, "infer": SOURCE}
    models = {
        name: with_external(parse(text), "gain", GAIN, "weights.safetensors", start) for name, text in texts.items()
    }
    state = {"mean": (np.array([0.5, 0, -0.5], np.float32), "statistic"), "count": (np.array(0), "counter")}
    moved = {"mean_next": "mean", "count_next": "count"}
    graphs = {"forward": {"state": moved, "stats": {"spread": "spread"}}}
    (folder / "report.json").write_text('{"plan": []}')
    return write_bundle(folder, models, state, manifest_of(graphs, state, STEP, 2))


def ema_expected(x: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits and the next mean of one step of "ema"."""
    return np.maximum((x - mean) @ GAIN, 0), np.float32(0.75) * mean + np.float32(0.25) * x.mean(axis=0)


def trained(folder: Path) -> Path:
    """Forward, backward and update: a scale trained to make the logits small; the weight is a graph input."""
    folder.mkdir()
    save_file({"gain": GAIN, "unused": GAIN}, folder / "weights.safetensors")
    state = {"scale": (np.ones(2, np.float32), "parameter")}
    graphs: dict[str, dict[str, Any]] = {
        "forward": {},
        "backward": {"stats": {"loss": "loss"}},
        "update": {"state": {"scale_next": "scale"}},
    }
    step = [{"run": "forward"}, {"run": "backward"}, {"run": "update"}, {"return": ["logits"]}]
    models = {name: parse(text) for name, text in TRAINED.items()}
    return write_bundle(folder, models, state, manifest_of(graphs, state, step, 2))


def trained_expected(x: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and the next scale of one step of "trained"."""
    h = x @ GAIN
    return h * scale, scale - np.float32(0.5) * (h * scale * h).mean(axis=0)


def counting(folder: Path, step: Sequence[Mapping[str, Any]]) -> Path:
    """The graphs of `COUNTING` under the program `step`; the state `level` begins at 1."""
    folder.mkdir()
    state = {"level": (np.array(1, np.float32), "counter"), "other": (np.array(7, np.float32), "counter")}
    moved = {"state": {"level_next": "level"}}
    graphs: dict[str, dict[str, Any]] = {
        "forward": {},
        "raise": moved,
        "double": moved,
        "measure": {"stats": {"samples": "seen"}},
    }
    models = {name: parse(text) for name, text in COUNTING.items()}
    return write_bundle(folder, models, state, manifest_of(graphs, state, step, 3))


def change(folder: Path, path: str, value: Any) -> None:
    """Set (or with `...` delete) one value of the manifest, by a path such as `inputs/0/shape`."""
    manifest = read(folder)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place: Any = manifest
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
