"""The manifest of a bundle, parsed strictly: an unknown entry is refused with its place and a way out.

`docs/bundle.md` describes format 3.  Nothing here opens another file of the bundle.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from ttac.errors import RuntimeMissingError
from ttac.runtime.form_table import parse_forms
from ttac.runtime.head_entry import parse_head
from ttac.runtime.json_values import (
    MANIFEST,
    a_count,
    a_digest,
    a_file,
    a_list,
    a_name,
    an_object,
    check_distinct,
    refuse,
)
from ttac.runtime.program.parse import parse_program
from ttac.runtime.program.words import Return, Word, all_words, graphs_of
from ttac.runtime.providers import NAMES
from ttac.runtime.records import (
    BATCH_AXIS,
    COUNTED,
    DTYPES,
    OPTIMIZATIONS,
    ROLES,
    GraphSpec,
    Manifest,
    SizeSpec,
    TensorSpec,
)

FORMAT = 3
MOST_THREADS = 1024
LARGEST = 64 * 2**20
"""Most bytes of a manifest; a larger one is not read."""

KEYS = frozenset(
    "format ttac method target source files inputs outputs head batch preprocessing state sites graphs programs memory "
    "verified executed_on".split()
)
FORMS, SIZES = "forms", "sizes"
"""Keys of the tables of forms and of open sizes, which a bundle without any lacks."""


def parse_manifest(raw: Mapping[str, Any]) -> Manifest:
    """Return the checked record of the manifest `raw`.

    Raises:
        RuntimeMissingError: the format is newer or older than this ttac.
        VerificationError: an entry does not fit `docs/bundle.md`.
    """
    _check_format(raw)
    keys = set(raw)
    if keys - {FORMS, SIZES} != KEYS:
        odd = ", ".join(f"`{key}`" for key in sorted((keys - {FORMS, SIZES}) ^ KEYS))
        refuse("the top level", f"has {'unknown' if keys - KEYS else 'missing'} keys: {odd}")
    _check_informative(raw)
    files = _files(raw["files"])
    state_file, state = _state(raw["state"], files)
    graphs = {name: _graph(name, entry, files, state) for name, entry in an_object(raw["graphs"], "graphs").items()}
    planned, smallest = _batch(raw["batch"])
    sizes = _sizes(raw.get(SIZES, []))
    inputs, outputs = _inputs(raw["inputs"], sizes), _tensors(raw["outputs"], "outputs")
    if not outputs:
        refuse("outputs", "is empty")
    return Manifest(
        raw=raw,
        identity=identity_of(raw),
        threads=a_count(raw["target"]["threads"], "target.threads", low=0, high=MOST_THREADS),
        files=files,
        inputs=inputs,
        sizes=sizes,
        outputs=outputs,
        head=parse_head(raw["head"], inputs, outputs),
        planned=planned,
        smallest=smallest,
        state_file=state_file,
        state=state,
        graphs=graphs,
        programs=_programs(raw["programs"], graphs, state, len(outputs)),
        forms=parse_forms(raw.get(FORMS, []), files, graphs),
        providers=_providers(raw["target"].get("providers", [])),
    )


def _providers(raw: Any) -> tuple[str, ...]:
    """The short names of the target's execution providers; empty for the CPU."""
    for number, name in enumerate(a_list(raw, "target.providers")):
        if not isinstance(name, str) or name not in NAMES:
            refuse(f"target.providers[{number}]", f"is {name!r}, not one of {', '.join(NAMES)}")
    return tuple(raw)


def identity_of(raw: Mapping[str, Any]) -> str:
    """SHA-256 over source, method, settings, state table and initial state; a saved state is bound to this digest."""
    state, method = raw["state"], raw["method"]
    # Two compiles may list the tensors in another order, where their updates are cut into graphs differently.
    tensors = sorted(json.dumps(tensor, sort_keys=True) for tensor in state["tensors"])
    facts = [raw["source"]["sha256"], method["name"], method["settings"], tensors, raw["files"][state["file"]]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_format(raw: Mapping[str, Any]) -> None:
    version = raw.get("format")
    if type(version) is not int or version < 1:
        refuse("format", f"is {version!r}, not {FORMAT}")
    if version != FORMAT:
        hint = "`pip install --upgrade ttac`" if version > FORMAT else "recompile the model with this ttac"
        raise RuntimeMissingError(
            f"the bundle has format {version}, this ttac reads format {FORMAT}",
            where=f"`{MANIFEST}`, written by ttac {raw.get('ttac', 'unknown')}",
            hint=hint,
        )


def _check_informative(raw: Mapping[str, Any]) -> None:
    """Check the types of the entries that people and other tools read; these objects may have further keys."""
    a_name(raw["ttac"], "ttac")
    method = an_object(raw["method"], "method", needs=("name", "settings"))
    a_name(method["name"], "method.name")
    an_object(method["settings"], "method.settings")
    target = an_object(raw["target"], "target", needs=("name", "engine", "opset", "ir_version", "threads"))
    a_name(target["name"], "target.name")
    if target["engine"] != "onnxruntime":
        refuse("target.engine", f"is {target['engine']!r}, not `onnxruntime`")
    source = an_object(raw["source"], "source", needs=("file", "sha256"))
    a_name(source["file"], "source.file")
    a_digest(source["sha256"], "source.sha256")
    _check_preprocessing(raw["preprocessing"])
    for number, site in enumerate(a_list(raw["sites"], "sites")):
        an_object(site, f"sites[{number}]", needs=("name", "kind", "statistics"))
        for key in ("name", "kind", "statistics"):
            a_name(site[key], f"sites[{number}].{key}")
    for key in ("memory", "verified"):
        an_object(raw[key], key)
    for number, engine in enumerate(a_list(raw["executed_on"], "executed_on")):
        an_object(engine, f"executed_on[{number}]", needs=("package", "version"))
        for key in ("package", "version"):
            a_name(engine[key], f"executed_on[{number}].{key}")


def _check_preprocessing(value: Any) -> None:
    if value is None:
        return
    an_object(value, "preprocessing")
    if value.get("layout", "NCHW") not in ("NCHW", "NHWC"):
        refuse("preprocessing.layout", f"is {value['layout']!r}, not `NCHW` or `NHWC`")
    for key, least in (("mean", 1), ("std", 1), ("range", 2)):
        numbers = a_list(value.get(key, [1.0] * least), f"preprocessing.{key}")
        if len(numbers) < least or not all(map(_is_finite, numbers)):
            refuse(f"preprocessing.{key}", f"is not a list of at least {least} finite numbers")
        if key == "range" and (len(numbers) != 2 or numbers[0] >= numbers[1]):
            refuse("preprocessing.range", "is not two numbers, the lower first")
        if key == "std" and min(numbers) <= 0:
            refuse("preprocessing.std", "is not above 0")


def _is_finite(number: Any) -> bool:
    """Whether it is a number that fits a float64."""
    return (type(number) is int and abs(number) < 1 << 53) or (type(number) is float and math.isfinite(number))


def _files(value: Any) -> dict[str, str]:
    files = an_object(value, "files")
    for name, digest in files.items():
        a_file(name, "files")
        a_digest(digest, f"files[{name!r}]")
    if MANIFEST in files:
        refuse("files", f"lists `{MANIFEST}` itself")
    return files


def _listed(value: Any, where: str, files: Mapping[str, str]) -> str:
    name = a_file(value, where)
    if name not in files:
        refuse(where, f"names `{name}`, which `files` does not list")
    return name


def _sizes(value: Any) -> dict[str, SizeSpec]:
    sizes: dict[str, SizeSpec] = {}
    for number, entry in enumerate(a_list(value, SIZES)):
        where = f"{SIZES}[{number}]"
        an_object(entry, where, only=("name", "largest", "multiple"), also=("smallest",))
        largest, multiple = (a_count(entry[key], f"{where}.{key}", low=1) for key in ("largest", "multiple"))
        smallest = a_count(entry.get("smallest", multiple), f"{where}.smallest", low=1)
        for key, size in (("largest", largest), ("smallest", smallest)):
            if size % multiple:
                refuse(f"{where}.{key}", f"is {size}, no multiple of {multiple}")
        if smallest > largest:
            refuse(f"{where}.smallest", f"is {smallest}, above `largest`")
        sizes[a_name(entry["name"], f"{where}.name")] = SizeSpec(largest, multiple, smallest)
    if len(sizes) != len(value) or BATCH_AXIS in sizes:
        refuse(SIZES, f"has a name twice, or `{BATCH_AXIS}`")
    return sizes


def _inputs(value: Any, sizes: Mapping[str, SizeSpec]) -> tuple[TensorSpec, ...]:
    inputs = _tensors(value, "inputs")
    if not inputs:
        refuse("inputs", "is empty")
    if all(spec.batch_axis is None for spec in inputs):
        refuse("inputs", f"has no shape with `{BATCH_AXIS}`")
    for number, spec in enumerate(inputs):
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str) and size != BATCH_AXIS and size not in sizes:
                refuse(f"inputs[{number}].shape[{axis}]", f"is {size!r}, which `sizes` lacks")
    return inputs


def _tensors(value: Any, where: str) -> tuple[TensorSpec, ...]:
    specs = tuple(_tensor(entry, f"{where}[{number}]") for number, entry in enumerate(a_list(value, where)))
    check_distinct((spec.name for spec in specs), where)
    return specs


def _tensor(value: Any, where: str, more: tuple[str, ...] = (), symbolic: bool = True) -> TensorSpec:
    entry = an_object(value, where, only=("name", "dtype", "shape", *more))
    if entry["dtype"] not in DTYPES:
        refuse(f"{where}.dtype", f"is {entry['dtype']!r}")
    shape = tuple(
        size if symbolic and isinstance(size, str) and size else a_count(size, f"{where}.shape[{axis}]", low=0)
        for axis, size in enumerate(a_list(entry["shape"], f"{where}.shape"))
    )
    if shape.count(BATCH_AXIS) > 1:
        refuse(f"{where}.shape", f"has `{BATCH_AXIS}` twice")
    return TensorSpec(a_name(entry["name"], f"{where}.name"), entry["dtype"], shape)


def _batch(value: Any) -> tuple[int, int]:
    batch = an_object(value, "batch", only=("planned", "smallest"))
    planned, smallest = (a_count(batch[key], f"batch.{key}", low=1) for key in ("planned", "smallest"))
    if smallest > planned:
        refuse("batch.smallest", f"is {smallest}, more than the planned {planned}")
    return planned, smallest


def _state(value: Any, files: Mapping[str, str]) -> tuple[str, dict[str, TensorSpec]]:
    state = an_object(value, "state", only=("file", "tensors"))
    specs = []
    for number, entry in enumerate(a_list(state["tensors"], "state.tensors")):
        where = f"state.tensors[{number}]"
        specs.append(_tensor(entry, where, more=("role",), symbolic=False))
        if entry["role"] not in ROLES:
            refuse(f"{where}.role", f"is {entry['role']!r}")
    check_distinct((spec.name for spec in specs), "state.tensors")
    return _listed(state["file"], "state.file", files), {spec.name: spec for spec in specs}


def _graph(name: str, value: Any, files: Mapping[str, str], state: Mapping[str, TensorSpec]) -> GraphSpec:
    where = f"graphs[{a_name(name, 'graphs')!r}]"
    entry = an_object(value, where, only=("file", "state", "stats"), also=("optimization",))
    file = _listed(entry["file"], f"{where}.file", files)
    if not file.endswith(".onnx"):
        refuse(f"{where}.file", f"is `{file}`, not an `.onnx` file")
    moved, stats = (_names_by_output(entry[key], f"{where}.{key}") for key in ("state", "stats"))
    for into in moved.values():
        if into not in state:
            refuse(f"{where}.state", f"names `{into}`, which the state table lacks")
    check_distinct(moved.values(), f"{where}.state")
    for reported in stats.values():
        if reported in COUNTED:
            refuse(f"{where}.stats", f"takes the name `{reported}`, which the runtime counts itself")
    optimization = entry.get("optimization", "")
    if optimization and optimization not in OPTIMIZATIONS:
        refuse(f"{where}.optimization", f"is {optimization!r}")
    return GraphSpec(name=name, file=file, state=moved, stats=stats, optimization=optimization)


def _names_by_output(value: Any, where: str) -> dict[str, str]:
    return {output: a_name(name, where) for output, name in an_object(value, where).items()}


def _programs(
    value: Any, graphs: Mapping[str, GraphSpec], state: Mapping[str, TensorSpec], outputs: int
) -> dict[str, tuple[Word, ...]]:
    entries = an_object(value, "programs", only=("step", "predict"))
    programs = {name: parse_program(words, f"programs.{name}", state) for name, words in entries.items()}
    for name, words in programs.items():
        for word in all_words(words):
            if isinstance(word, Return) and len(word.names) != outputs:
                refuse(f"programs.{name}", f"returns {len(word.names)} values, and `outputs` has {outputs}")
    for name, words in programs.items():
        for graph in graphs_of(words):
            if graph not in graphs:
                refuse(f"programs.{name}", f"runs `{graph}`, which `graphs` lacks")
    return programs
