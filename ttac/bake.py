"""Bake an adapted state into an ordinary inference model.

The base is the source graph `infer.onnx` of the bundle, in which the parameters of a norm are the initializers
`<site>.scale`, `.bias`, `.mean` and `.var`.  A state tensor of the same name replaces the initializer.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google.protobuf.message
import numpy as np
import onnx
import onnx_ir as ir

from ttac.errors import UnsupportedError, UsageError, VerificationError
from ttac.runtime.bundle import open_bundle
from ttac.runtime.engine import engine, open_session
from ttac.runtime.records import Manifest
from ttac.runtime.state_files import read_state

GRAPH = "infer.onnx"
SINGLE_FILE = 1_900_000_000
"""Bytes of weights above which a separate file holds them; protobuf ends at 2 GiB."""

LEARNED = ("parameter", "statistic")
DAMAGED = (ir.serde.SerdeError, google.protobuf.message.DecodeError)
"""Errors of the libraries that read ONNX files."""


@dataclass(frozen=True)
class BakedModel:
    """A written model.

    Attributes:
        path: the file.
        replaced: role -> number of tensors from the state.
        source_statistics: batch norms that adapt with the statistics of test data, which no state tracks.
        probe: shape of the logits of the batch that verified the model.
    """

    path: Path
    replaced: Mapping[str, int]
    source_statistics: tuple[str, ...]
    probe: tuple[int, ...]


def bake(bundle: Path, state: Path, output: Path) -> BakedModel:
    """Write the model of `bundle` with the tensors of `state` to `output`, and check and run the model once.

    Raises the errors of `open_bundle` and `read_state`, and:
        UnsupportedError: an ordinary model has no place for a tensor of the state.
        VerificationError: the baked model is not valid ONNX, or its outputs are not finite.
    """
    manifest = open_bundle(bundle).manifest
    learned = _learned(manifest, state)
    model = _source(bundle / GRAPH)
    _place(model, learned)
    untracked = _source_statistics(manifest.raw, learned)
    probe = _write(model, output, manifest.raw)
    roles = {role: sum(tensor.role == role for tensor in learned.values()) for role in LEARNED}
    return BakedModel(output, roles, untracked, probe)


def _source(path: Path) -> ir.Model:
    """Return the source graph of the bundle with its weights in memory.

    Raises VerificationError if the file holds no graph, or names weights outside the bundle.
    """
    try:
        return _self_contained(ir.load(path))
    except (OSError, RuntimeError, TypeError, ValueError, *DAMAGED) as error:
        hint = "copy the bundle again, or compile it again"
        raise VerificationError("the source graph of the bundle is damaged", where=f"`{path}`", hint=hint) from error


@dataclass(frozen=True)
class AdaptedTensor:
    """One adapted tensor and its role in the state table."""

    role: str
    array: np.ndarray


def _learned(manifest: Manifest, state: Path) -> dict[str, AdaptedTensor]:
    """Return the parameters and statistics in the state file, by name."""
    arrays = read_state(state, manifest)
    entries = manifest.raw["state"]["tensors"]
    return {e["name"]: AdaptedTensor(e["role"], arrays[e["name"]]) for e in entries if e["role"] in LEARNED}


def _place(model: ir.Model, learned: Mapping[str, AdaptedTensor]) -> None:
    """Replace the initializers with the names of the `learned` tensors, in place.

    Raises UnsupportedError for a tensor without an initializer, VerificationError for another shape.
    """
    for name, tensor in learned.items():
        value = model.graph.initializers.get(name)
        if value is None:
            raise UnsupportedError(
                f"`{name}` was adapted, but the source model has no tensor of that name",
                where=f"`{GRAPH}`",
                hint="keep running the bundle; the state of this method cannot become an ONNX model",
            )
        if value.shape is not None and tuple(value.shape) != tensor.array.shape:
            raise VerificationError(
                f"`{name}` has shape {list(value.shape)}, its state {list(tensor.array.shape)}", where=f"`{GRAPH}`"
            )
        value.const_value = ir.tensor(np.ascontiguousarray(tensor.array), name=name)


def _source_statistics(manifest: Mapping[str, Any], learned: Mapping[str, AdaptedTensor]) -> tuple[str, ...]:
    """Batch norms that adapt with the statistics of test data, although the state tracks no statistics for them."""
    sites = [site for site in manifest["sites"] if site["kind"] == "batch" and site["statistics"] != "source"]
    return tuple(site["name"] for site in sites if f"{site['name']}.mean" not in learned)


def _write(model: ir.Model, output: Path, manifest: Mapping[str, Any]) -> tuple[int, ...]:
    """Save the model in the folder of `output`, check and run the file, and move it; return the shape of the logits."""
    if not output.resolve().parent.is_dir():
        raise UsageError("the folder does not exist", where=f"`{output}`", hint=f"`mkdir -p {output.parent}`")
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    with tempfile.TemporaryDirectory(dir=output.resolve().parent, prefix=f".{output.name}-") as folder:
        partial = Path(folder) / output.name
        try:
            ir.save(model, partial, external_data=f"{output.name}.data" if size > SINGLE_FILE else None)
        except (ir.serde.SerdeError, ValueError) as error:
            hint = "copy the bundle again, or compile it again"
            problem = "the source graph of the bundle cannot be written"
            raise VerificationError(problem, where=f"`{GRAPH}`", hint=hint) from error
        probe = _verified(partial, manifest)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == output.name):
            shutil.move(file, output.resolve().parent / file.name)
    return probe


def _self_contained(model: ir.Model) -> ir.Model:
    """Return the model with every external tensor read into memory."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    return model


def _verified(file: Path, manifest: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of the logits of one sample.

    Raises VerificationError if the model is not valid ONNX, does not run, or its outputs are not finite, and
    RuntimeMissingError without an engine.
    """
    engine()
    random = np.random.default_rng(0)
    feed = {
        entry["name"]: random.random([1, *entry["shape"][1:]], np.float32).astype(entry["dtype"])
        for entry in manifest["inputs"]
    }
    try:
        onnx.checker.check_model(str(file), full_check=True)
        outputs = open_session(file).run([entry["name"] for entry in manifest["outputs"]], feed)
    except Exception as error:
        text = " ".join(str(error).split())
        raise VerificationError(f"the baked model does not run: {text}", where=f"`{file.name}`") from error
    if not all(np.isfinite(output).all() for output in outputs):
        raise VerificationError("the baked model's outputs are not finite", hint="bake a state saved earlier")
    return tuple(outputs[0].shape)
