"""From the content of a bundle to its folder: files, state table, programs, manifest and report."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from safetensors.numpy import save_file

from ttac.bundle_content import BundleContent
from ttac.errors import printable
from ttac.passes.graph.execute import batch_axes
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.state import StateTensor
from ttac.passes.norms.norm_sites import NormSite
from ttac.passes.step_graphs.window import WINDOW
from ttac.runtime.hash_check import digest_of
from ttac.runtime.manifest import FORMAT
from ttac.samples.images import preparation
from ttac.spec import Word

STATE = "state.safetensors"
OWN = "sample"
"""Statistics of all norms but batch norms: those of each sample."""


def write_files(content: BundleContent, folder: Path) -> None:
    """Write graphs, weights and the initial state into `folder`."""
    write_graphs(folder, content.graphs, content.fed_weights, {tensor.name for tensor in content.tensors})
    initial = {t.name: np.ascontiguousarray(t.initial).reshape(t.initial.shape) for t in content.tensors}
    save_file(initial, folder / STATE)


def manifest(
    content: BundleContent,
    folder: Path,
    verified: Mapping[str, Any],
    memory: Mapping[str, Any],
    steps: Mapping[str, Sequence[Word]],
) -> dict[str, Any]:
    """The manifest of the bundle in `folder`, with the programs `steps`; all other files must be there."""
    options = content.state.options
    files = {p.name: digest_of(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != "manifest.json"}
    infer = content.graphs["infer"].graph
    return {
        "format": FORMAT,
        "ttac": metadata.version("ttac"),
        "method": {"name": options.method.name, "settings": dict(options.settings)},
        "target": _target_entry(content),
        "source": {"file": printable(options.path.name), "sha256": digest_of(options.path)},
        "files": files,
        "inputs": [_tensor_entry(value) for value in infer.inputs],
        "outputs": [_tensor_entry(value) for value in infer.outputs],
        "head": _head_entry(content),
        "batch": {"planned": options.step, "smallest": smallest_batch(content)},
        "preprocessing": _preprocessing(content),
        "state": {"file": STATE, "tensors": [_state_entry(tensor) for tensor in content.tensors]},
        "sites": [_site_entry(content, site) for site in content.state.sites],
        "graphs": _graph_entries(content),
        "programs": dict(steps),
        "memory": dict(memory),
        "verified": dict(verified),
        "executed_on": [engine()] if verified else [],
        **({"forms": list(content.forms)} if content.forms else {}),
        **({"sizes": [asdict(size) for size in content.sizes]} if content.sizes else {}),
    }


def smallest_batch(content: BundleContent) -> int:
    """The least number of samples of a step: 2 if a site would normalise a single value by its own statistics, else 1.

    PyTorch refuses such a batch of one too.
    """
    state = content.state
    is_single = any(site.kind == "batch" and site.spatial == 1 for site in state.sites)
    if state.options.settings.get(WINDOW):
        return 1
    return 2 if is_single and state.adaptation.statistics.needs == "batch" and state.options.batch > 1 else 1


def report(content: BundleContent, verified: Mapping[str, Any], memory: Mapping[str, Any], rooms: Sequence[str]) -> str:
    """The report of a bundle as JSON text, which `ttac inspect` prints."""
    layers = _layers(content)
    rows = [{"layer": layers.get(row.value, ""), **asdict(row)} for row in content.plan.decisions]
    modules = content.state.int8.table()
    adapts = [_drift_entry(site) for site in content.state.sites if site.drift is not None]
    tables = {key: table for key, table in (("adapts", adapts), ("modules", modules)) if table}
    entries = {"plan": rows, **tables, "rooms": list(rooms), "verified": dict(verified), **memory}
    return json.dumps(entries, indent=1)


def _layers(content: BundleContent) -> dict[str, str]:
    """Value -> the layer of the source network that its node belongs to, empty if unknown."""
    nodes = [node for model in content.graphs.values() for node in model.graph]
    return {str(value.name): node.metadata_props.get(LAYER, "") for node in nodes for value in node.outputs}


def engine() -> dict[str, str]:
    """Package, version and platform of the engine that executed the graphs during the compile."""
    for package in ("onnxruntime-training-cpu", "onnxruntime-training", "onnxruntime-gpu", "onnxruntime"):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        return {"package": package, "version": version, "platform": f"{platform.system()} {platform.machine()}"}
    return {"package": "unknown", "version": "0", "platform": f"{platform.system()} {platform.machine()}"}


def _target_entry(content: BundleContent) -> dict[str, Any]:
    target, forward = content.state.options.target, content.graphs["forward"]
    return {
        "name": target.name,
        "engine": target.engine,
        "opset": forward.opset_imports[""],
        "ir_version": forward.ir_version,
        "threads": target.threads,
        **({"providers": list(target.providers)} if target.providers else {}),
    }


def _preprocessing(content: BundleContent) -> dict[str, Any] | None:
    pixels = content.state.options.pixels
    if not pixels:
        return None
    x = content.inputs[0]
    stated = preparation(_tensor_entry(x)["shape"], pixels).stated
    return {"input": str(x.name), **stated} if len(content.inputs) > 1 else stated


def _head_entry(content: BundleContent) -> dict[str, Any] | None:
    """The head in the axes of the model's output, which may have the samples on another axis than the first."""
    head = content.state.head
    if head is None:
        return None
    entry = {"output": content.output, **head.described}
    samples = batch_axes(content.graphs["infer"])[content.output]
    if head.axis is not None and head.axis <= samples:
        entry["axis"] = head.axis - 1
    return entry


def _tensor_entry(value: ir.Value) -> dict[str, Any]:
    """The entry of an input or output; a size that only the data decide is `?`."""
    shape = [size if isinstance(size, int) else str(size.value or "?") for size in value.shape or ()]
    return {"name": value.name, "dtype": str((value.dtype or ir.DataType.FLOAT).numpy()), "shape": shape}


def _state_entry(tensor: StateTensor) -> dict[str, Any]:
    initial = tensor.initial
    return {"name": tensor.name, "dtype": str(initial.dtype), "shape": list(initial.shape), "role": tensor.role}


def _site_entry(content: BundleContent, site: NormSite) -> dict[str, Any]:
    trained = any(tensor.name == f"{site.name}.scale" for tensor in content.tensors)
    return {
        "name": site.name,
        "kind": site.kind,
        "channels": site.channels,
        "statistics": content.state.adaptation.statistics.name if site.kind == "batch" else OWN,
        "trained": trained,
        "inserted": site.inserted,
    }


def _drift_entry(site: NormSite) -> dict[str, Any]:
    return {"name": site.name, "values": site.channels * site.spatial, "drift": site.drift}


def _graph_entries(content: BundleContent) -> dict[str, Any]:
    return {
        name: {"file": f"{name}.onnx", "state": content.moves.get(name, {}), "stats": content.stats.get(name, {})}
        for name in content.graphs
        if name != "infer"
    }
