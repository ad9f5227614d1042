"""Bake an adapted state into an ordinary inference model.

The base is the source graph `infer.onnx` of the bundle, in which the parameters of a norm are the initializers
`<site>.scale`, `.bias`, `.mean` and `.var`.  A state tensor of the same name replaces the initializer.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google.protobuf.message
import numpy as np
import onnx
import onnx_ir as ir

from ttac.bake_comparison import Comparison, Referee
from ttac.errors import UnsupportedError, UsageError, VerificationError
from ttac.passes.adapt.adapt_norms import TRACKED_BATCHES
from ttac.runtime.bundle import open_bundle
from ttac.runtime.engine import open_session
from ttac.runtime.engine_import import engine
from ttac.runtime.manifest import parse_manifest
from ttac.runtime.packed_graph import PackedGraph
from ttac.runtime.program.words import Run, all_words
from ttac.runtime.records import BATCH_AXIS, Manifest
from ttac.runtime.replacement import read_unreplaced
from ttac.runtime.state_files import read_state
from ttac.staging import staged_folder

GRAPH = "infer.onnx"
SINGLE_FILE = 1_900_000_000
"""Bytes of weights above which a separate file holds them; protobuf ends at 2 GiB."""

LEAST_BATCHES = 10
"""Fewest batches that the averages of a state may cover, where no samples show how the baked model predicts."""

PARAMETER = "parameter"
LEARNED = (PARAMETER, "statistic")
DAMAGED = (ir.serde.SerdeError, google.protobuf.message.DecodeError)
"""Errors of the libraries that read ONNX files."""


@dataclass(frozen=True, kw_only=True)
class BakedModel:
    """A written model.

    Attributes:
        path: the file.
        replaced: role -> number of tensors from the state.
        source_statistics: batch norms that adapt with the statistics of test data, which no state tracks.
        probe: shape of the logits of the batch that verified the model.
        comparison: the model beside the source; None without samples, or where no head says how outputs are read.
    """

    path: Path
    replaced: Mapping[str, int]
    source_statistics: tuple[str, ...]
    probe: tuple[int, ...]
    comparison: Comparison | None = None


def bake(bundle: Path, state: Path, output: Path, samples: Path | None = None, *, force: bool = False) -> BakedModel:
    """Write the model of `bundle` with the tensors of `state` to `output`, and check and run the model once.

    Args:
        samples: samples on which the model is compared with the source before it is written, with or without labels.
            None takes those of the bundle's check set, for the trained tensors alone: statistics belong to other data.
        force: write the model also if it is much worse than the source, or averages few batches.

    Raises the errors of `open_bundle` and `read_state`, and:
        UsageError: without samples, the averages of the state cover fewer than `LEAST_BATCHES` batches.
        UnsupportedError: an ordinary model has no place for a tensor of the state.
        VerificationError: the baked model is not valid ONNX, its outputs are not finite, or it is much worse.
    """
    manifest, model, kept = read_unreplaced(bundle, lambda: _read(bundle))
    arrays = read_state(state, manifest)
    learned = _learned(manifest, arrays)
    trained = {name: tensor for name, tensor in learned.items() if tensor.role == PARAMETER}
    referee = Referee.of(manifest, samples) if samples else kept if trained else None
    if samples is None and not force:
        _refuse_few_batches(arrays, state)
    with _staged(output) as folder:
        source = _save(model, folder / "source", output.name) if referee else None
        _place(model, trained)
        judged = _save(model, folder / "trained", output.name) if referee and referee is kept else None
        _place(model, learned)
        partial = _save(model, folder / "baked", output.name)
        probe = _verified(partial, manifest.raw)
        comparison = referee.compare(source, judged or partial) if referee and source else None
        if comparison and not force:
            comparison.refuse()
        for file in sorted(partial.parent.iterdir(), key=lambda file: file.name == output.name):
            shutil.move(file, output.resolve().parent / file.name)
    return BakedModel(
        path=output,
        replaced={role: sum(tensor.role == role for tensor in learned.values()) for role in LEARNED},
        source_statistics=_source_statistics(manifest.raw, learned),
        probe=probe,
        comparison=comparison,
    )


def _read(bundle: Path) -> tuple[Manifest, ir.Model, Referee | None]:
    """Return the manifest, the source graph and the check set of one version of the bundle."""
    opened = open_bundle(bundle)
    return opened.manifest, _source(opened.files.graph(GRAPH)), Referee.of_check_set(opened)


def _source(graph: Path | PackedGraph) -> ir.Model:
    """Return the source graph of the bundle with its weights in memory.

    Raises VerificationError if the file holds no graph, or names weights outside the bundle.
    """
    try:
        if isinstance(graph, Path):
            return _self_contained(ir.load(graph))
        bundle = graph.bundle.resolve()
        model = ir.from_proto(onnx.load_model_from_string(graph.located(bundle.name)))
        ir.external_data.set_base_dir(model.graph, bundle.parent)
        return _self_contained(model)
    except (OSError, RuntimeError, TypeError, ValueError, *DAMAGED) as error:
        hint = "copy the bundle again, or compile it again"
        where = f"`{graph if isinstance(graph, Path) else graph.path}`"
        raise VerificationError("the source graph of the bundle is damaged", where=where, hint=hint) from error


@dataclass(frozen=True)
class AdaptedTensor:
    """One adapted tensor and its role in the state table."""

    role: str
    array: np.ndarray


def _refuse_few_batches(arrays: Mapping[str, np.ndarray], state: Path) -> None:
    """Raise UsageError if the averages of the state cover one batch or a few; without a batch they are the source's."""
    batches = int(arrays.get(TRACKED_BATCHES, np.zeros(())))
    if 0 < batches < LEAST_BATCHES:
        problem = f"the statistics of the state average {batches} of at least {LEAST_BATCHES} batches"
        hint = "adapt to more batches, compare with the source by `--samples FILE`, or add `--force`"
        raise UsageError(problem, where=f"`{state}`", hint=hint)


def _learned(manifest: Manifest, arrays: Mapping[str, np.ndarray]) -> dict[str, AdaptedTensor]:
    """Return the parameters and statistics that `predict` reads from the arrays of a state, by name."""
    runs = [word for word in all_words(manifest.programs["predict"]) if isinstance(word, Run)]
    chosen = {name: value for run in runs for name, value in run.feed.items()}
    entries = {entry["name"]: entry["role"] for entry in manifest.raw["state"]["tensors"]}
    learned = [name for name, role in entries.items() if role in LEARNED]
    return {name: AdaptedTensor(entries[name], arrays[chosen.get(name, name)]) for name in learned}


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


@contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """A new folder beside `output`; raises UsageError if there is none, or nothing can be written there."""
    parent = output.resolve().parent
    if not parent.is_dir():
        raise UsageError("the folder does not exist", where=f"`{output}`", hint=f"`mkdir -p {output.parent}`")
    try:
        with staged_folder(parent) as folder:
            yield folder
    except OSError as error:
        problem, hint = f"cannot write the model: {error.strerror or error}", "free space there, or choose another `-o`"
        raise UsageError(problem, where=f"`{error.filename or output}`", hint=hint) from error


def _save(model: ir.Model, folder: Path, name: str) -> Path:
    """Save the model in the new `folder`, with its weights beside it if they are large; return the file."""
    folder.mkdir()
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    try:
        ir.save(model, folder / name, external_data=f"{name}.data" if size > SINGLE_FILE else None)
    except (ir.serde.SerdeError, ValueError) as error:
        hint = "copy the bundle again, or compile it again"
        problem = "the source graph of the bundle cannot be written"
        raise VerificationError(problem, where=f"`{GRAPH}`", hint=hint) from error
    return folder / name


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
    parsed, feed = parse_manifest(manifest), {}
    for spec in parsed.inputs:
        shape = [1 if size == BATCH_AXIS else int(size) for size in parsed.largest(spec)]
        feed[spec.name] = random.random(shape, np.float32).astype(spec.dtype)
    try:
        onnx.checker.check_model(str(file), full_check=True)
        outputs = open_session(file).run([entry["name"] for entry in manifest["outputs"]], feed)
    except Exception as error:
        text = " ".join(str(error).split())
        raise VerificationError(f"the baked model does not run: {text}", where=f"`{file.name}`") from error
    if not all(np.isfinite(output).all() for output in outputs):
        raise VerificationError("the baked model's outputs are not finite", hint="bake a state saved earlier")
    return tuple(outputs[0].shape)
