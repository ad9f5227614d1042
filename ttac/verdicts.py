"""The verdict on each method for one model: the rooms of a compile decide, up to the gradients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

import ttac.passes.differentiate.rules  # noqa: F401  (registers the rules)
from ttac.compile_state import CompileState
from ttac.errors import TtacError, UnsupportedError, UsageError
from ttac.method_fit import with_statistics
from ttac.passes.differentiate.reverse_walk import RULES, nodes_between
from ttac.passes.norms.norm_choice import decide
from ttac.passes.norms.norm_sites import find_norms
from ttac.reports.progress import RoomLog
from ttac.rooms import adapt_model, choose_norms, read_head, settle_settings

YES, NO, IN_PART = "yes", "no", "in part"
CHANGING = ("--shape", "--calibration", "--logits", "--hold", "--batch")
"""Options of a compile that make a method fit which does not fit without them."""
IDLE = {False: "it adapts nothing", True: "it changes predictions only"}
"""Reason why a method that adapts no norm fits every model; the key says whether it refines the predictions."""


@dataclass(frozen=True)
class Verdict:
    """Whether a method fits (`yes`, `in part`, `with --OPTION` or `no`), the reason, and the option that changes it."""

    method: str
    fits: str
    because: str
    option: str = ""


def verdict(state: CompileState) -> Verdict:
    """Return the verdict on the method of the options, for a state in normal form."""
    method = state.options.method
    log = RoomLog(lambda line: None)
    try:
        state = read_head(state, log)
        state = choose_norms(state, log)
        state = settle_settings(state, log)
        if method.refine:
            adapt_model(state, log)
    except (UnsupportedError, UsageError) as error:
        return _with_samples(state) or refused(method.name, error)
    if not method.adapts:
        return Verdict(method.name, YES, IDLE[bool(method.refine)])
    because = decide(find_norms(state.model), state.options.norms).because
    lacking = missing_rules(state.model, [site.y for site in state.sites]) if method.by_gradients else {}
    if not lacking:
        return Verdict(method.name, YES, because)
    operators = ", ".join(lacking)
    behind = [site.name for site in state.sites if not missing_rules(state.model, [site.y])]
    if not behind:
        return Verdict(method.name, NO, f"no gradient for {operators}, and every norm lies in front")
    return Verdict(method.name, IN_PART, f"no gradient for {operators}", f"--train {_names(behind)}")


def refused(method: str, error: TtacError) -> Verdict:
    """Return the verdict on a method that a compile refuses with `error`."""
    options = re.findall(r"`(--[^`]+)`", error.hint or "")
    option = options[0] if options else ""
    flag = option.split()[0] if option else ""
    if flag in CHANGING and "NAME" not in option:
        return Verdict(method, f"with {flag}", error.problem, option)
    return Verdict(method, NO, f"{error.problem} ({error.hint})" if error.hint else error.problem)


def missing_rules(model: ir.Model, starts: Sequence[ir.Value]) -> dict[str, list[str]]:
    """Return the operators without gradient rule from `starts` to the first output, each with its nodes."""
    lacking: dict[str, list[str]] = {}
    for node in nodes_between(model.graph, starts, model.graph.outputs[0]):
        if node.op_type not in RULES:
            lacking.setdefault(node.op_type, []).append(str(node.name))
    return dict(sorted(lacking.items()))


def _with_samples(state: CompileState) -> Verdict | None:
    """Return the verdict on the method with calibration samples; None if they would give the model no norm."""
    options, log = state.options, RoomLog(lambda line: None)
    try:
        state = read_head(state, log)
        choice = decide(find_norms(state.model), options.norms, has_calibration=True)
        if not choice.inserted or not options.method.adapts:
            return None
        if not options.method.trains and choice.sites:
            with_statistics(choice.sites, options.method)
    except (UnsupportedError, UsageError):
        return None
    try:
        settle_settings(replace(state, sites=tuple(choice.sites)), log)
    except (UnsupportedError, UsageError) as error:
        return refused(options.method.name, error)
    return Verdict(options.method.name, "with --calibration", choice.because, "--calibration PATH")


def _names(names: Sequence[str], most: int = 3) -> str:
    return ",".join(names[:most]) + (",..." if len(names) > most else "")
