"""Writes hand-made bundles: graphs as ONNX text, weights and state as safetensors, and the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from safetensors.numpy import save_file

from ttac.runtime.manifest import FORMAT

HEAD = '<ir_version: 8, opset_import: ["" : 18]>\n'
WEIGHTS = "weights.safetensors"
PREDICT = ({"run": "forward", "only": ["logits"]}, {"return": ["logits"]})

Words = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A hand-made bundle.

    Attributes:
        graphs: name -> text of the graph, without the head.
        step, predict: the programs.
        state: name -> compiled value and role.
        moves: graph -> output -> state tensor.
        stats: graph -> output -> reported name.
        weights: tensors of the weights file.
        external: names of initializers whose data lies in the weights file.
        inputs, outputs: name -> dtype and shape.
        smallest: fewest samples of a step; the bundle is planned for 4.
        settings: hyperparameters, which the identity of saved states covers.
        sizes: open size of the inputs -> the largest size, the number that divides every size, and the smallest size.
    """

    graphs: Mapping[str, str]
    step: Words
    predict: Words = PREDICT
    state: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    moves: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    stats: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    external: Sequence[str] = ()
    inputs: Mapping[str, tuple[str, list[Any]]] = field(default_factory=lambda: {"x": ("float32", ["N", 3])})
    outputs: Mapping[str, tuple[str, list[Any]]] = field(default_factory=lambda: {"logits": ("float32", ["N", 3])})
    smallest: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def write(made: Made, folder: Path) -> None:
    """Write the bundle into the new folder `folder`."""
    folder.mkdir(parents=True)
    if made.weights:
        save_file(dict(made.weights), folder / WEIGHTS)
    save_file({name: np.asarray(value) for name, (value, _) in made.state.items()}, folder / "state.safetensors")
    for name, text in made.graphs.items():
        model = onnx.parser.parse_model(HEAD + text)
        for weight in made.external:
            _move_out(model, weight, folder / WEIGHTS, made.weights[weight])
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))
    (folder / "manifest.json").write_text(json.dumps(sealed(folder, manifest(made)), indent=1) + "\n")


def sealed(folder: Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the SHA-256 of every other file of the folder."""
    paths = sorted(path for path in folder.iterdir() if path.name != "manifest.json")
    return {**entries, "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}}


def manifest(made: Made) -> dict[str, Any]:
    """The manifest without the digests of the files."""
    first, (_, shape) = next(iter(made.outputs.items()))
    head = (
        {"output": first, "kind": "classes", "axis": 1, "values": "logits"}
        if shape[0] == "N" and len(shape) > 1
        else None
    )
    return {
        "format": FORMAT,
        "ttac": "0.1.0",
        "method": {"name": "kit", "settings": dict(made.settings)},
        "target": {"name": "cpu", "engine": "onnxruntime", "opset": 18, "ir_version": 8, "threads": 1},
        "source": {"file": "kit.onnx", "sha256": hashlib.sha256(b"kit").hexdigest()},
        "inputs": _specs(made.inputs),
        "outputs": _specs(made.outputs),
        "head": head,
        "batch": {"planned": 4, "smallest": made.smallest},
        "preprocessing": None,
        "state": {
            "file": "state.safetensors",
            "tensors": [
                {"name": name, "dtype": str(np.asarray(value).dtype), "shape": list(np.shape(value)), "role": role}
                for name, (value, role) in made.state.items()
            ],
        },
        "sites": [],
        "graphs": {
            name: {
                "file": f"{name}.onnx",
                "state": dict(made.moves.get(name, {})),
                "stats": dict(made.stats.get(name, {})),
            }
            for name in made.graphs
        },
        "programs": {"step": list(made.step), "predict": list(made.predict)},
        "memory": {},
        "verified": {},
        "executed_on": [],
        **({"sizes": _sizes(made.sizes)} if made.sizes else {}),
    }


def _specs(table: Mapping[str, tuple[str, list[Any]]]) -> list[dict[str, Any]]:
    return [{"name": name, "dtype": dtype, "shape": shape} for name, (dtype, shape) in table.items()]


def _sizes(table: Mapping[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    keys = ("largest", "multiple", "smallest")
    return [{"name": name, **dict(zip(keys, numbers, strict=False))} for name, numbers in table.items()]


def _move_out(model: onnx.ModelProto, name: str, path: Path, array: np.ndarray) -> None:
    """Point the initializer `name` of the model at its data in the weights file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for tensor in model.graph.initializer:
        if tensor.name == name:
            place = {"location": path.name, "offset": start + header[name]["data_offsets"][0], "length": array.nbytes}
            replaced = onnx.TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
            replaced.data_location = onnx.TensorProto.EXTERNAL
            for key, value in place.items():
                replaced.external_data.add(key=key, value=str(value))
            tensor.CopyFrom(replaced)
