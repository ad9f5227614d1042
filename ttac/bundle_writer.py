"""From compiled graphs to a bundle folder: files, state table, programs, manifest and report."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from safetensors.numpy import save_file

from ttac.options import CompileOptions
from ttac.passes.differentiate.heads import Head
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.state import StateTensor
from ttac.passes.norms.norm_sites import NormSite
from ttac.passes.plan.decisions import Plan
from ttac.passes.quantize.modules import Int8Modules
from ttac.program_writer import Word
from ttac.runtime.bundle import digest_of
from ttac.runtime.manifest import FORMAT
from ttac.samples.images import preparation
from ttac.spec import SOURCE_STATISTICS, Statistics

STATE = "state.safetensors"
OWN = "sample"
"""What norms other than batch norms normalise with: the statistics of each sample."""


@dataclass
class Compiled:
    """Everything the rooms made, ready to be written.

    Attributes:
        graphs: file stem -> model; `infer` is the plain source graph.
        state: every state tensor with its initial value; moves: graph -> graph output -> state tensor.
        stats: graph -> graph output -> name in `adapter.stats`.
        fed: weights that are graph inputs, by name.
        exact: forward and backward with every residual kept as it is, where the bundle's are not; for comparison only.
        head: how the output is read, None where that is unclear.
        quantized: the layers as 8-bit modules; no module without `--quantize`.
    """

    request: CompileOptions
    graphs: dict[str, ir.Model]
    sites: Sequence[NormSite] = ()
    statistics: Statistics = SOURCE_STATISTICS
    state: Sequence[StateTensor] = ()
    moves: dict[str, dict[str, str]] = field(default_factory=dict)
    stats: dict[str, dict[str, str]] = field(default_factory=dict)
    fed: dict[str, np.ndarray] = field(default_factory=dict)
    plan: Plan | None = None
    exact: dict[str, ir.Model] = field(default_factory=dict)
    head: Head | None = None
    quantized: Int8Modules | None = None

    @property
    def logits(self) -> str:
        """Name of the graph output that holds the logits."""
        return str(self.graphs["forward"].graph.outputs[0].name)


def write_files(compiled: Compiled, folder: Path) -> None:
    """Write graphs, weights and the initial state into `folder`."""
    write_graphs(folder, compiled.graphs, compiled.fed, {tensor.name for tensor in compiled.state})
    initial = {t.name: np.ascontiguousarray(t.initial).reshape(t.initial.shape) for t in compiled.state}
    save_file(initial, folder / STATE)


def manifest(
    compiled: Compiled,
    folder: Path,
    verified: Mapping[str, Any],
    memory: Mapping[str, Any],
    steps: Mapping[str, Sequence[Word]],
) -> dict[str, Any]:
    """The manifest of the bundle in `folder`, whose other files are all written; `steps` are its programs."""
    request = compiled.request
    files = {p.name: digest_of(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != "manifest.json"}
    infer = compiled.graphs["infer"].graph
    return {
        "format": FORMAT,
        "ttac": metadata.version("ttac"),
        "method": {"name": request.method.name, "settings": dict(request.settings)},
        "target": _target(compiled),
        "source": {"file": request.path.name, "sha256": digest_of(request.path)},
        "files": files,
        "inputs": [_described(infer.inputs[0])],
        "outputs": [_described(infer.outputs[0])],
        "head": compiled.head.described if compiled.head else None,
        "batch": {"planned": request.batch, "smallest": smallest_batch(compiled)},
        "preprocessing": _prepared(compiled),
        "state": {"file": STATE, "tensors": [_tabled(tensor) for tensor in compiled.state]},
        "sites": [_site(compiled, site) for site in compiled.sites],
        "graphs": _graphs(compiled),
        "programs": dict(steps),
        "memory": dict(memory),
        "verified": dict(verified),
        "executed_on": [engine()] if verified else [],
    }


def smallest_batch(compiled: Compiled) -> int:
    """2 where a site would otherwise normalise a single value by its own statistics (PyTorch refuses that too)."""
    alone = compiled.statistics.needs == "batch" and any(s.kind == "batch" and s.spatial == 1 for s in compiled.sites)
    return 2 if alone and compiled.request.batch > 1 else 1


def report(compiled: Compiled, verified: Mapping[str, Any], memory: Mapping[str, Any], rooms: Sequence[str]) -> str:
    """What `ttac inspect` prints of a bundle, as JSON."""
    layers = _layers(compiled)
    rows = (
        [{"layer": layers.get(row.value, ""), **asdict(row)} for row in compiled.plan.decisions]
        if compiled.plan
        else []
    )
    modules = compiled.quantized.table() if compiled.quantized else []
    adapts = [_drift(site) for site in compiled.sites if site.drift is not None]
    tables = {key: table for key, table in (("adapts", adapts), ("modules", modules)) if table}
    content = {"plan": rows, **tables, "rooms": list(rooms), "verified": dict(verified), **memory}
    return json.dumps(content, indent=1)


def _layers(compiled: Compiled) -> dict[str, str]:
    """Value -> the layer of the source network whose node makes it, where one is noted."""
    nodes = [node for model in compiled.graphs.values() for node in model.graph]
    return {str(value.name): node.metadata_props.get(LAYER, "") for node in nodes for value in node.outputs}


def engine() -> dict[str, str]:
    """The engine package and its version that executed the graphs while they were compiled."""
    for package in ("onnxruntime-training-cpu", "onnxruntime-training", "onnxruntime-gpu", "onnxruntime"):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        return {"package": package, "version": version, "platform": f"{platform.system()} {platform.machine()}"}
    return {"package": "unknown", "version": "0", "platform": f"{platform.system()} {platform.machine()}"}


def _target(compiled: Compiled) -> dict[str, Any]:
    target, forward = compiled.request.target, compiled.graphs["forward"]
    return {
        "name": target.name,
        "engine": target.engine,
        "opset": forward.opset_imports[""],
        "ir_version": forward.ir_version,
        "threads": target.threads,
    }


def _prepared(compiled: Compiled) -> dict[str, Any] | None:
    pixels = compiled.request.pixels
    return preparation(_described(compiled.graphs["infer"].graph.inputs[0])["shape"], pixels).stated if pixels else None


def _described(value: ir.Value) -> dict[str, Any]:
    assert value.shape is not None
    shape = [size if isinstance(size, int) else "N" for size in value.shape]
    return {"name": value.name, "dtype": "float32", "shape": shape}


def _tabled(tensor: StateTensor) -> dict[str, Any]:
    initial = tensor.initial
    return {"name": tensor.name, "dtype": str(initial.dtype), "shape": list(initial.shape), "role": tensor.role}


def _site(compiled: Compiled, site: NormSite) -> dict[str, Any]:
    trained = any(tensor.name == f"{site.name}.scale" for tensor in compiled.state)
    return {
        "name": site.name,
        "kind": site.kind,
        "channels": site.channels,
        "statistics": compiled.statistics.name if site.kind == "batch" else OWN,
        "trained": trained,
        "inserted": site.inserted,
    }


def _drift(site: NormSite) -> dict[str, Any]:
    return {"name": site.name, "values": site.channels * site.spatial, "drift": site.drift}


def _graphs(compiled: Compiled) -> dict[str, Any]:
    return {
        name: {"file": f"{name}.onnx", "state": compiled.moves.get(name, {}), "stats": compiled.stats.get(name, {})}
        for name in compiled.graphs
        if name != "infer"
    }
