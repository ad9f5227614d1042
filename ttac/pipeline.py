"""`ttac compile`, room by room: an ONNX file, a method and a target in, a bundle out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttac import methods
from ttac.build_graphs import Parts, build_graphs, plan_residuals
from ttac.finish import Finished, finish
from ttac.garbage import uncollected
from ttac.memory_check import OverBudget
from ttac.method_facts import constants_of, head_of, refine, settled, subject_of
from ttac.options import ALL, CompileOptions
from ttac.passes.adapt.adapt_norms import adapt_norms
from ttac.passes.adapt.train_weights import own_weights, train_weights
from ttac.passes.differentiate.joint import differentiate_loss, own_logits
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import normalise
from ttac.program_writer import runs_again
from ttac.reports.progress import Rooms
from ttac.sites import choose_sites, lifted, name_parameters, quantize_frozen, samples_of
from ttac.sizes import format_size

if TYPE_CHECKING:
    import onnx_ir as ir

    from ttac.runtime.bundle import Bundle
    from ttac.sites import Samples

TRIES = 6
"""How often a step is planned for less until it measures within the budget; each is a compile of its last rooms."""


def compile_model(
    path: str | Path,
    *,
    method: str = methods.DEFAULT,
    target: str = "cpu",
    output: str | Path | None = None,
    batch: int | None = None,
    calibration: str | Path | np.ndarray | None = None,
    norms: str = "auto",
    train: str = "norms",
    quantize: str | None = None,
    memory_budget: int | str | None = None,
    settings: Mapping[str, Any] | None = None,
    dump: str | Path | None = None,
    dry_run: bool = False,
    input: str | None = None,
    logits: str | None = None,
    shape: Sequence[int] | str | None = None,
    head: str = "auto",
    pixels: str | Sequence[str] | Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Compile the ONNX file `path` for test-time adaptation; returns the bundle, written to the folder `output`.

    `ttac.options.CompileOptions` describes the arguments; `say` gets one line per room.

    Raises:
        UsageError, UnsupportedError, BudgetError, RuntimeMissingError, VerificationError: see `ttac.errors`; nothing
            is left behind.
    """
    choices = {name: value for name, value in locals().items() if name not in ("path", "say")}
    return compile_with(CompileOptions.from_mapping(path, choices), say)


def compile_with(asked: CompileOptions, say: Callable[[str], None]) -> Bundle:
    """The rooms, one after the other."""
    with uncollected():
        return _compile(asked, say)


def _compile(asked: CompileOptions, say: Callable[[str], None]) -> Bundle:
    rooms = Rooms(say, asked.dump)
    source = rooms.loaded(load(asked.path, input=asked.input, output=asked.logits, say=rooms.note))
    asked, plain = lifted(asked, source, rooms.note)
    samples = samples_of(asked, plain, rooms.note)
    model = rooms.normalised(normalise(plain, shape=asked.shape or samples.shape, say=rooms.note))
    head = rooms.headed(head_of(asked, model))
    sites = rooms.recognised(model, choose_sites(model, asked, samples, rooms.note))
    asked, subject = settled(asked, subject_of(asked, model, head, sites, samples, rooms.note))
    sites = list(subject.sites)
    quantized = rooms.quantized(model, quantize_frozen(asked, model, sites, samples))
    sites = quantized.sites
    owned = own_weights(model) if asked.train == ALL else []
    infer = model.clone()
    name_parameters(infer, sites)
    statistics = asked.method.statistics(asked.settings)
    adaptation = adapt_norms(model, sites, statistics, asked.settings, trains=asked.method.trains, batch=asked.batch)
    adaptation = refine(asked, replace(subject, sites=sites, adaptation=adaptation))
    adaptation = replace(adaptation, parameters=(*adaptation.parameters, *train_weights(model, owned)))
    rooms.adapted(model, adaptation)
    constants = rooms.computed(constants_of(asked, replace(subject, sites=sites, adaptation=adaptation)))
    logits = model.graph.outputs[0]
    joint = differentiate_loss(model, logits, asked.method.loss, adaptation.parameters, head)
    joint = rooms.differentiated(own_logits(joint) if runs_again(asked.method.program) else joint)
    parts = Parts(asked, infer, sites, adaptation, joint, constants, head, quantized)
    return fit(parts, source, samples, rooms)


def fit(parts: Parts, source: ir.Model, samples: Samples, rooms: Rooms) -> Bundle:
    """The finished bundle; while it measures above the budget and a smaller plan exists, plan for less.

    Raises BudgetError for the least that a step was measured to need.
    """
    goal = budget = parts.request.memory_budget
    refusals: list[OverBudget] = []
    for left in reversed(range(TRIES)):
        planned = plan_residuals(parts, goal)
        rooms.planned(planned.plan)
        outcome = finish(build_graphs(parts, planned, rooms), source, parts.joint, samples, rooms)
        if isinstance(outcome, Finished):
            return outcome.bundle
        refusals.append(outcome)
        if goal is None or budget is None or not planned.more or not left:
            break
        # The last try is for the least there is.
        goal = int(goal * min(budget / outcome.needs, 0.92)) if left > 1 else 0
        if planned.layers:
            parts = parts.keeping(min(budget / outcome.needs, 0.8) if left > 1 else 0.0)
        rooms.note(f"needs {format_size(outcome.needs)}: planned again")
    raise min(refusals, key=lambda refusal: refusal.needs).error()
