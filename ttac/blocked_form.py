"""Further forms of a bundle's graphs: written beside the portable ones, compared with them, or left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.bundle_content import BundleContent
from ttac.errors import TtacError
from ttac.memory_check import planned_peak
from ttac.passes.blocked.block_graphs import BlockedGraphs, block_graphs, is_worthwhile
from ttac.passes.blocked.layout import Recipe
from ttac.passes.blocked.probe import BLOCKS, probe
from ttac.passes.graph.execute import Executable
from ttac.passes.graph.graph_files import WEIGHTS, write_more_graphs
from ttac.passes.kernels.byte_norms import byte_probe, with_byte_norms
from ttac.passes.kernels.linked_graphs import version_of
from ttac.passes.kernels.optimizer_steps import fuse_adam
from ttac.passes.kernels.with_kernels import with_kernels
from ttac.passes.verify.compare import relative
from ttac.program_writer import programs
from ttac.runtime.form_table import BYTES_BLOCK, parse_forms
from ttac.runtime.forms import form_weights, probe_failure
from ttac.runtime.kernel_library import kernel_library
from ttac.runtime.tensors import map_tensors
from ttac.spec import walk

GRADIENTS = 0.1
"""Largest difference of all gradients of a form from those of the portable graphs, by their length.  Two orders of
summation move the gradients of a deep net with random weights by 2e-2."""

PARTLY = np.float32(0.3)
"""Factor on keep ratios in a second comparison, so that it reads dropped blocks too."""

Entry = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class WrittenForm:
    """A form in the bundle's folder: its entry in the manifest, and the planned peak of a step in bytes."""

    entry: Entry
    peak: int


def write_forms(
    content: BundleContent, folder: Path, feeds: Mapping[str, np.ndarray], note: Callable[[str], None]
) -> list[WrittenForm]:
    """Write blocked graphs with and without kernels into `folder`, or a forward whose norms read bytes.

    No form where the layout or the kernels gain nothing, and none for a form that this engine runs with other numbers.
    A form that this machine cannot run is written without a comparison.
    """
    if content.sizes:
        return []
    graphs = _graphs_of_a_step(content)
    written: list[WrittenForm] = []
    portable = _Portable(folder, tuple(graphs), _feeds(content, feeds))
    for made in _of_bytes(content) if content.state.int8.modules else _in_blocks(content, graphs):
        entry = _write(content, made, folder)
        if problem := _disagreement(content, entry, folder, portable):
            note(f"{entry['name']}: left out, {problem}")
            _remove(entry, folder)
        else:
            written.append(WrittenForm(entry, planned_peak(content, made.graphs)))
    return written


def _graphs_of_a_step(content: BundleContent) -> dict[str, ir.Model]:
    names = ["forward", *content.stages("backward")]
    return {name: content.graphs[name] for name in names if name in content.graphs}


def _of_bytes(content: BundleContent) -> Iterator[BlockedGraphs]:
    """The forward of 8-bit layers with norms that read bytes, if it has such norms."""
    forward = with_byte_norms(content.graphs["forward"])
    if forward is not None:
        yield BlockedGraphs(BYTES_BLOCK, version_of(forward.graph), {"forward": forward}, {})


def _in_blocks(content: BundleContent, graphs: Mapping[str, ir.Model]) -> Iterator[BlockedGraphs]:
    """The graphs of a step in the layout of each block size, with kernels and without, where it gains something."""
    outside = _read_elsewhere(content, set(graphs))
    spelled = {True: with_kernels(graphs, outside), False: graphs}
    updates = fuse_adam({name: content.graphs[name] for name in content.stages("update")})
    for kernels, block in product((True, False), BLOCKS):
        made = block_graphs(spelled[kernels], block, content.fed_weights, outside, kernels=kernels)
        if is_worthwhile(made) and bool(made.kernels) == kernels:
            yield made.joined(updates) if kernels else made


def run_here(entries: Sequence[Mapping[str, Any]], folder: Path) -> bool:
    """Return whether the engine of this machine runs one of the forms."""
    return any(not probe_failure(folder / entry["probe"], entry.get("kernels", 0)) for entry in entries)


def remove_forms(entries: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Remove the files of the forms; the portable graphs stay."""
    for entry in entries:
        _remove(entry, folder)


def _remove(entry: Mapping[str, Any], folder: Path) -> None:
    for file in (entry["probe"], *entry["graphs"].values()):
        (folder / file).unlink()


def _read_elsewhere(content: BundleContent, blocked: set[str]) -> set[str]:
    """Names that the state, the caller, the programs or other graphs read; these values stay in the plain layout."""
    others = [model for name, model in content.graphs.items() if name not in blocked]
    read = {str(value.name) for model in others for value in model.graph.inputs}
    named = [name for table in (content.moves, content.stats) for outputs in table.values() for name in outputs]
    words = [word for program in programs(content).values() for word in walk(program)]
    named += [name for word in words for name in (*word.get("feed", {}).values(), *word.get("return", ()))]
    named += [word["when"] for word in words if "when" in word]
    return {content.logits, *content.outputs, *read, *named}


def _write(content: BundleContent, made: BlockedGraphs, folder: Path) -> Entry:
    of_bytes = made.block == BYTES_BLOCK
    name = f"{'kernels' if made.kernels else 'blocked'}-{'bytes' if of_bytes else made.block}"
    opset, ir_version = content.graphs["forward"].opset_imports[""], content.graphs["forward"].ir_version
    files = {graph: f"{graph}.{name}" for graph in made.graphs}
    small = byte_probe(opset, ir_version)
    if not of_bytes:
        small = probe(made.block, opset, ir_version, kernels=bool(made.kernels))
    models = {f"probe.{name}": small, **{files[key]: model for key, model in made.graphs.items()}}
    write_more_graphs(folder, models, {tensor.name for tensor in content.tensors})
    stored = map_tensors(folder / WEIGHTS)[0]
    return {
        "name": name,
        "block": made.block,
        **({"kernels": made.kernels} if made.kernels else {}),
        "probe": f"probe.{name}.onnx",
        "graphs": {graph: f"{file}.onnx" for graph, file in files.items()},
        "weights": {input: _described(recipe, stored) for input, recipe in sorted(made.recipes.items())},
    }


def _described(recipe: Recipe, stored: Mapping[str, np.ndarray]) -> Entry:
    entry: Entry = {"of": _stored_name(recipe.value, stored), "order": recipe.order}
    if recipe.taps:
        entry["taps"] = [list(kept) for kept in recipe.taps]
    return {**entry, "groups": recipe.groups} if recipe.groups else entry


def _stored_name(value: ir.Value, stored: Mapping[str, np.ndarray]) -> str:
    """Name under which the weights file holds the weight; equal contents share one."""
    name = str(value.name)
    if value.const_value is None:
        return name
    array = value.const_value.numpy()
    places = [name, *(other for other, held in stored.items() if held.shape == array.shape)]
    return next(place for place in places if place in stored and np.array_equal(stored[place], array))


@dataclass(frozen=True)
class _Portable:
    """The portable graphs of a step, and the feeds on which the forms are compared with them."""

    folder: Path
    names: tuple[str, ...]
    feeds: Sequence[Arrays]

    @cached_property
    def values(self) -> list[Arrays]:
        """The values of a step for each of the feeds; a compile needs them for no more than the forms that run."""
        return [_executed(self.folder, [f"{name}.onnx" for name in self.names], fed) for fed in self.feeds]


def _disagreement(content: BundleContent, entry: Entry, folder: Path, portable: _Portable) -> str:
    """How the form's numbers differ from the portable ones; empty if they agree, or this engine cannot run it."""
    files = dict.fromkeys([entry["probe"], *entry["graphs"].values()], "")
    (spec,) = parse_forms([entry], files, entry["graphs"])
    if probe_failure(folder / spec.probe, spec.kernels):
        return ""
    library = kernel_library(spec.kernels).path if spec.kernels else None
    weights = form_weights(map_tensors(folder / WEIGHTS)[0], spec, folder)
    # An optimizer may read further graphs of the method.  The first step on the device compares its changes.
    steps = [graph for graph in spec.graphs if graph in content.stages("update")]
    for fed, expected in zip(portable.feeds, portable.values, strict=True):
        try:
            found = _executed(folder, [spec.graphs[name] for name in portable.names], {**fed, **weights}, library)
            for graph in steps:
                Executable(folder / spec.graphs[graph], library=library)
        except TtacError as error:
            return f"the engine refuses it: {error.problem}"
        if problem := _difference(content, found, expected, spec.agreed):
            return problem
    return ""


def _feeds(content: BundleContent, feeds: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
    """The feeds of each comparison: also with smaller keep ratios, where the bundle measures these."""
    if content.state.options.batch == 1 and not content.stages("backward"):
        # Norms of single samples have the shape of one sample in constants.
        feeds = {**feeds, **content.state.samples.few(1, content.inputs).arrays}
    ratios = {t.name: PARTLY * feeds[t.name] for t in content.tensors if t.role == "sparsity" and t.name in feeds}
    return [feeds, *([{**feeds, **ratios}] if ratios else [])]


def _difference(content: BundleContent, found: Arrays, portable: Arrays, agreed: float) -> str:
    """A clause on outputs that differ by more than `agreed`, or gradients that differ too much; empty if they agree."""
    outputs = {content.logits, *content.outputs} & set(portable)
    logits = max(relative(found[name], portable[name]) for name in outputs)
    parameters = [tensor.name for tensor in content.tensors if f"{tensor.name}.grad" in portable]
    apart = _length([found[f"{name}.grad"] - portable[f"{name}.grad"] for name in parameters])
    length = _length([portable[f"{name}.grad"] for name in parameters])
    if logits <= agreed and apart <= GRADIENTS * length:
        return ""
    return f"its logits differ by {logits:.1e}, its gradients by {apart / max(length, 1e-30):.1e}"


def _length(arrays: Sequence[np.ndarray]) -> float:
    return math.hypot(*(float(np.linalg.norm(array)) for array in arrays))


def _executed(
    folder: Path, files: Sequence[str], feeds: Mapping[str, np.ndarray], library: Path | None = None
) -> dict[str, np.ndarray]:
    values = dict(feeds)
    for file in files:
        values |= Executable(folder / file, library=library)(values)
    return values
