"""The report of `ttac inspect MODEL`: its norms, the operators without gradient, and the methods that fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

import ttac.passes.differentiate.rules  # noqa: F401  (registers the rules)
from ttac import methods
from ttac.errors import UnsupportedError
from ttac.method_fit import with_statistics
from ttac.passes.differentiate.heads import decide_head, reads_text
from ttac.passes.differentiate.reverse_walk import RULES, nodes_between
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.folded_norms import Candidate, Rejection
from ttac.passes.norms.norm_choice import decide
from ttac.passes.norms.norm_sites import ModelNorms, NormSite, find_norms
from ttac.passes.quantize.quantized_files import is_quantized, lift
from ttac.spec import Method

IDLE = {False: "it adapts nothing", True: "it changes predictions only"}
"""Reason why a method that adapts no norm fits every model; the key says whether it refines the predictions."""


def inspect_model(
    path: str | Path,
    *,
    norms: str = "auto",
    shape: tuple[int, ...] | None = None,
    head: str = "auto",
    axis: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    **names: Any,
) -> dict[str, Any]:
    """Return a report of the model in JSON values, in the order in which `ttac inspect` prints them.

    The arguments are those of `ttac.compile`, with `input`, `logits` and `hold` among the `names`.  Raises UsageError
    and UnsupportedError when the file cannot be read; an obstacle to adaptation is part of the report instead.
    """
    source = load(path, input=names.get("input"), output=names.get("logits"), hold=names.get("hold"), say=say)
    lifted, grids = lift(source) if is_quantized(source) else (source, 0)
    model = normalise(lifted, shape=shape, say=say)
    census, missing = find_norms(model), without_gradient(model)
    reading, unread = _head(model, head, axis)
    return {
        "model": str(path),
        **_facts(source, model),
        **({"eight_bit": f"{grids} values are rounded, the layers between them run in 8 bits"} if grids else {}),
        "head": reading or f"none: {unread}",
        "norms": census.summary,
        "norm_sites": _site_rows(census.sites),
        "folded": _listed(census.folded),
        "near_misses": _listed(census.near_misses),
        "left_alone": _listed(census.skipped) if not census.sites else [],
        "without_gradient": missing,
        "methods": [_fit(methods.find(name), census, norms, missing, unread) for name in methods.names()],
    }


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


def without_gradient(model: ir.Model) -> list[dict[str, Any]]:
    """Return the operators without gradient rule, and their nodes, between the norms or folded norms and the logits."""
    census = find_norms(model)
    starts = [site.y for site in census.sites] + [candidate.value for candidate in census.folded]
    lacking: dict[str, list[str]] = {}
    for node in nodes_between(model.graph, starts, model.graph.outputs[0]):
        if node.op_type not in RULES:
            lacking.setdefault(node.op_type, []).append(str(node.name))
    return [{"operator": operator, "nodes": nodes} for operator, nodes in sorted(lacking.items())]


def _facts(source: ir.Model, model: ir.Model) -> dict[str, Any]:
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    return {
        "opset": source.opset_imports.get("", 0),
        "nodes": len(model.graph),
        "weights_bytes": sum(tensor.nbytes for tensor in tensors),
        "input": _described(model.graph.inputs[0]),
        "output": _described(model.graph.outputs[0]),
    }


def _described(value: ir.Value) -> str:
    return f"{value.name} {value.dtype.numpy() if value.dtype else ''} {value.shape}"


def _listed(items: Sequence[Candidate | Rejection]) -> list[dict[str, str]]:
    return [{"name": item.name, "operator": item.node.op_type, "because": item.because} for item in items]


def _head(model: ir.Model, choice: str, axis: int | None) -> tuple[str, str]:
    """Return the reading of the output, and the reason why there is none; one of the two is empty."""
    try:
        return str(decide_head(model.graph.outputs[0], choice, axis, reads_text=reads_text(model))), ""
    except UnsupportedError as error:
        return "", f"{error.problem} ({error.hint})"


def _fit(
    method: Method, census: ModelNorms, norms: str, missing: Sequence[dict[str, Any]], unread: str
) -> dict[str, str]:
    """Return whether `method` can adapt the model (yes, in part, with --calibration, or no) and the reason.

    `unread` is the reason why the output has no head; empty if it has one.
    """
    fits, because = _norms_fit(census, norms, method) if method.adapts else ("yes", IDLE[bool(method.refine)])
    if (method.loss or method.refine) and unread and fits != "no":
        return {"method": method.name, "fits": "no", "because": unread}
    if method.trains and missing and fits != "no":
        operators = ", ".join(row["operator"] for row in missing)
        fits, because = "in part", f"no gradient for {operators}: train the sites behind, `--train SELECTOR`"
    return {"method": method.name, "fits": fits, "because": because}


def _norms_fit(census: ModelNorms, norms: str, method: Method) -> tuple[str, str]:
    """Return whether there are norms to adapt, without calibration samples or with them, and the reason."""
    try:
        return "yes", _decision(census, norms, method, calibrated=False)
    except UnsupportedError as error:
        reason = error.problem
    try:
        return "with --calibration", _decision(census, norms, method, calibrated=True)
    except UnsupportedError:
        return "no", reason


def _decision(census: ModelNorms, norms: str, method: Method, *, calibrated: bool) -> str:
    """Return the reason for the norms that a compile adapts; raises UnsupportedError if it adapts none."""
    choice = decide(census, norms, has_calibration=calibrated)
    if not method.trains and not choice.inserted:
        with_statistics(choice.sites, method)
    return choice.because
