"""What a model offers to adaptation: its norms, what stands in the way, and which methods fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

import ttac.passes.differentiate.rules  # noqa: F401  (registers the rules)
from ttac import methods
from ttac.errors import UnsupportedError
from ttac.passes.differentiate.heads import decide_head
from ttac.passes.differentiate.reverse_walk import RULES, nodes_between
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.passes.norms.folded_norms import Candidate, Passed
from ttac.passes.norms.norm_choice import decide
from ttac.passes.norms.norm_sites import Found, find_norms
from ttac.passes.quantize.quantized_files import is_quantized, lift
from ttac.sites import with_statistics
from ttac.spec import Method

IDLE = {False: "it adapts nothing", True: "it changes predictions only"}
"""Why a method that adapts no norm fits every model: without and with a refinement of the predictions."""


def inspect_model(
    path: str | Path,
    *,
    norms: str = "auto",
    input: str | None = None,
    logits: str | None = None,
    shape: tuple[int, ...] | None = None,
    head: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """A report of the model that JSON can hold, in the order `ttac inspect` prints it.

    Arguments are those of `ttac.compile`.  Raises UsageError and UnsupportedError when the file cannot be read at all;
    what adaptation lacks is part of the report.
    """
    source = load(path, input=input, output=logits, say=say)
    plain, grids = lift(source) if is_quantized(source) else (source, 0)
    model = normalise(plain, shape=shape, say=say)
    found, missing = find_norms(model), without_gradient(model)
    read, unread = _head(model, head)
    return {
        "model": str(path),
        **_facts(source, model),
        **({"eight_bit": f"{grids} values are rounded, the layers between them run in 8 bits"} if grids else {}),
        "head": read or f"none: {unread}",
        "norms": found.summary,
        "norm_sites": [
            {
                "order": order,
                "name": site.name,
                "kind": site.kind,
                "channels": site.channels,
                "spatial": site.spatial,
                "of_all_values": site.channels
                * site.spatial
                / max(1, sum(s.channels * s.spatial for s in found.sites)),
            }
            for order, site in enumerate(found.sites, start=1)
        ],
        "folded": _listed(found.folded),
        "near_misses": _listed(found.near_misses),
        "left_alone": _listed(found.skipped) if not found.sites else [],
        "without_gradient": missing,
        "methods": [_fit(methods.find(name), found, norms, missing, unread) for name in methods.names()],
    }


def without_gradient(model: ir.Model) -> list[dict[str, Any]]:
    """Operators between a norm, or a place for one, and the logits that have no gradient rule, with their nodes."""
    found = find_norms(model)
    starts = [site.y for site in found.sites] + [candidate.value for candidate in found.folded]
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


def _listed(items: Sequence[Candidate | Passed]) -> list[dict[str, str]]:
    return [{"name": item.name, "operator": item.node.op_type, "because": item.because} for item in items]


def _head(model: ir.Model, asked: str) -> tuple[str, str]:
    """How the output is read, or else why not."""
    try:
        return str(decide_head(model.graph.outputs[0], asked)), ""
    except UnsupportedError as error:
        return "", f"{error.what} ({error.hint})"


def _fit(method: Method, found: Found, norms: str, missing: Sequence[dict[str, Any]], unread: str) -> dict[str, str]:
    """Whether `method` can adapt the model: yes, with calibration, or no, and why; `unread`: why it has no head."""
    fits, because = _norms_fit(found, norms, method) if method.adapts else ("yes", IDLE[bool(method.refine)])
    if (method.loss or method.refine) and unread and fits != "no":
        return {"method": method.name, "fits": "no", "because": unread}
    if method.trains and missing and fits != "no":
        operators = ", ".join(row["operator"] for row in missing)
        fits, because = "in part", f"no gradient for {operators}: train the sites behind, `--train SELECTOR`"
    return {"method": method.name, "fits": fits, "because": because}


def _norms_fit(found: Found, norms: str, method: Method) -> tuple[str, str]:
    """Whether there are norms to adapt, without calibration data or with them."""
    try:
        return "yes", _decided(found, norms, method, calibrated=False)
    except UnsupportedError as error:
        alone = error.what
    try:
        return "with --calibration", _decided(found, norms, method, calibrated=True)
    except UnsupportedError:
        return "no", alone


def _decided(found: Found, norms: str, method: Method, *, calibrated: bool) -> str:
    """What would be adapted; raises UnsupportedError if that is nothing."""
    chosen = decide(found, norms, has_calibration=calibrated)
    if not method.trains and not chosen.inserted:
        with_statistics(chosen.sites, method)
    return chosen.because
