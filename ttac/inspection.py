"""The report of `ttac inspect MODEL`: the file, its norms, and a verdict on each method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from ttac import methods
from ttac.compile_state import CompileState
from ttac.errors import UnsupportedError
from ttac.method_facts import outputs_of
from ttac.options import CompileOptions
from ttac.passes.differentiate.head_clues import box_output, padding_mask, reads_text
from ttac.passes.differentiate.heads import decide_head
from ttac.passes.load.checked_file import checked
from ttac.passes.load.input_axes import axes_of
from ttac.passes.load.model_file import INPUTS
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.folded_norms import Candidate, Rejection
from ttac.passes.norms.norm_sites import NormSite, find_norms
from ttac.passes.quantize.quantized_files import is_quantized, lift
from ttac.source_model import load_source
from ttac.source_samples import Samples, samples_of
from ttac.spec import WITHOUT_PREDICTIONS
from ttac.verdicts import Verdict, missing_rules, refused, verdict

GUESSES = (224, 320, 640, 64, 32)
"""Sizes that `inspect` tries for open sizes of the input."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model as far as it could be opened.

    Attributes:
        source: the model as loaded; model: its normal form; None where a fault stops the compile before.
        grids: number of values that the file rounds to 8 bits.
        guess: the shape of a sample that was tried where the file leaves it open; empty otherwise.
        samples: the calibration samples; single: whether the file works for one sample at a time only.
        fault: the reason why there is no normal form.
    """

    source: ir.Model | None = None
    model: ir.Model | None = None
    grids: int = 0
    guess: tuple[int, ...] = ()
    samples: Samples = field(default_factory=Samples)
    single: bool = False
    fault: UnsupportedError | None = None


def inspect_model(path: str | Path, say: Say = lambda line: None, **choices: Any) -> dict[str, Any]:
    """Return a report of the model in JSON values, in the order in which `ttac inspect` prints them.

    `choices` are options of `ttac.compile`: norms, head, axis, background, input, logits, hold, shape, calibration.  A
    fault of a valid file is part of the report.  Raises UsageError for a wrong option, UnsupportedError for a file that
    is damaged or no ONNX model.
    """
    proto = checked(Path(path))
    opened = _opened(path, choices, say)
    report = {"model": str(path), **_facts(proto, opened)}
    if opened.source is None or opened.model is None:
        fault = opened.fault
        assert fault is not None
        rows = [refused(name, fault) for name in methods.names()]
        where = {"where": fault.where} if fault.where else {}
        report["obstacle"] = {"problem": fault.problem, **where, "hint": fault.hint or "none"}
        return {**report, "methods": [asdict(row) for row in rows]}
    census, model = find_norms(opened.model), opened.model
    starts = [site.y for site in census.sites] + [candidate.value for candidate in census.folded]
    lacking = missing_rules(model, starts)
    return {
        **report,
        "head": _head(model, choices),
        "norms": census.summary,
        "norm_sites": _site_rows(census.sites),
        "folded": _listed(census.folded),
        "near_misses": _listed(census.near_misses),
        "left_alone": _listed(census.skipped) if not census.sites else [],
        "without_gradient": [{"operator": operator, "nodes": nodes} for operator, nodes in lacking.items()],
        "methods": [asdict(row) for row in _verdicts(path, opened, choices)],
    }


def _opened(path: str | Path, choices: dict[str, Any], say: Say) -> Opened:
    """Open the file as a compile does; where the file leaves sizes open, with the first guess that works."""
    shape = choices.get("shape")
    try:
        source = load_source(path, choices, say)
    except UnsupportedError as error:
        return Opened(fault=error)
    samples = samples_of(CompileOptions.from_mapping(path, {**choices, "method": "source"}), source, say)
    lifted, grids = lift(source) if is_quantized(source) else (source, 0)
    fault: UnsupportedError | None = None
    x, shape = source.graph.inputs[0], shape or samples.shape
    guesses = [(), *_guesses(x, axes_of(source)[str(x.name)] or 0, shape)]
    for single, guess in product((False, True), guesses):
        model, refusal = _normal_form(lifted, guess or shape, samples, single, say)
        if model is not None:
            return Opened(source=source, model=model, grids=grids, guess=guess, samples=samples, single=single)
        fault = fault or refusal
    return Opened(source=source, grids=grids, fault=fault)


def _normal_form(
    model: ir.Model, shape: Any, samples: Samples, single: bool, say: Say
) -> tuple[ir.Model | None, UnsupportedError | None]:
    try:
        return normalise(model, shape=shape, say=say, single=single, samples=samples.known), None
    except UnsupportedError as error:
        return None, error


def _guesses(x: ir.Value, axis: int, shape: Any) -> list[tuple[int, ...]]:
    """Shapes of a sample to try where the input `x`, with samples along `axis`, leaves sizes open."""
    stated = [size if isinstance(size, int) else None for place, size in enumerate(x.shape or ()) if place != axis]
    if shape is not None or not stated or None not in stated:
        return []
    return [tuple(size or guess for size in stated) for guess in GUESSES]


def _verdicts(path: str | Path, opened: Opened, choices: dict[str, Any]) -> list[Verdict]:
    """Return the verdict on each method; a guessed shape and a single sample become options."""
    source, model = opened.source, opened.model
    assert source is not None and model is not None
    rows = []
    for name in methods.names():
        batch = {"batch": 1} if opened.single else {}
        options = CompileOptions.from_mapping(path, {**choices, **batch, "method": name, "dry_run": True})
        rows.append(
            verdict(
                CompileState(
                    options=options,
                    source=source,
                    model=model,
                    outputs=outputs_of(source, model),
                    samples=opened.samples,
                    single=opened.single,
                )
            )
        )
    guess, alone = "x".join(str(size) for size in opened.guess), opened.single and choices.get("batch") != 1
    needed = [*([f"--shape {guess}"] if guess else []), *(["--batch 1"] if alone else [])]
    if not needed:
        return rows
    fits = f"with {needed[0].split()[0]}"
    return [replace(row, fits=fits, option=" ".join(needed)) if row.fits == "yes" else row for row in rows]


def _facts(proto: onnx.ModelProto, opened: Opened) -> dict[str, Any]:
    """Return opset, nodes, weights, inputs and outputs of the file; of the normal form where there is one."""
    model, source = opened.model, opened.source
    opset = next((entry.version for entry in proto.opset_import if entry.domain == ""), 0)
    if model is None or source is None:
        counts = Counter(node.op_type for node in proto.graph.node)
        return {
            "opset": opset,
            "nodes": len(proto.graph.node),
            "operators": ", ".join(f"{count} {name}" for name, count in counts.most_common(12)),
            "inputs": [_stated(value) for value in _without_weights(proto)],
            "outputs": [_stated(value) for value in proto.graph.output],
        }
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    names, order = outputs_of(source, model), list(source.meta[INPUTS])
    outputs = [_described(value) for name in names for value in model.graph.outputs if value.name == name]
    inputs = [_described(value) for value in sorted(model.graph.inputs, key=lambda x: order.index(str(x.name)))]
    rounded = f"{opened.grids} values are rounded, the layers between them run in 8 bits"
    return {
        "opset": source.opset_imports.get("", 0),
        "nodes": len(model.graph),
        "weights_bytes": sum(tensor.nbytes for tensor in tensors),
        **({"input": inputs[0]} if len(inputs) == 1 else {"inputs": inputs}),
        **({"output": outputs[0]} if len(outputs) == 1 else {"outputs": outputs}),
        **({"eight_bit": rounded} if opened.grids else {}),
    }


def _without_weights(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in weights]


def _stated(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = ", ".join(size.dim_param or str(size.dim_value or "?") for size in tensor.shape.dim)
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} {kind} [{sizes}]"


def _site_rows(sites: Sequence[NormSite]) -> list[dict[str, Any]]:
    """Return one row per norm site; `of_all_values` is the fraction of the values of all sites."""
    values = max(1, sum(site.channels * site.spatial for site in sites))
    return [
        {
            "order": order,
            "name": site.name,
            "kind": site.kind,
            "channels": site.channels,
            "spatial": site.spatial,
            "of_all_values": site.channels * site.spatial / values,
        }
        for order, site in enumerate(sites, start=1)
    ]


def _described(value: ir.Value) -> str:
    return f"{value.name} {value.dtype.numpy() if value.dtype else ''} {value.shape}"


def _listed(items: Sequence[Candidate | Rejection]) -> list[dict[str, str]]:
    return [{"name": item.name, "operator": item.node.op_type, "because": item.because} for item in items]


def _head(model: ir.Model, choices: Mapping[str, Any]) -> str:
    """Return the reading of the first output, or the reason why there is none."""
    choice, background = (str(choices.get(name) or "auto") for name in ("head", "background"))
    if choice in WITHOUT_PREDICTIONS:
        return f"none: {choice}, without predictions"
    try:
        output = model.graph.outputs[0]
        clues: dict[str, Any] = {"reads_text": reads_text(model), "boxes": box_output(model, output)}
        head = decide_head(output, choice, choices.get("axis"), background=background, **clues)
        return str(replace(head, mask=padding_mask(model, head) if choice in ("auto", "tokens") else ""))
    except UnsupportedError as error:
        return f"none: {error.problem} ({error.hint})"
