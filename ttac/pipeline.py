"""`ttac compile`, room by room: an ONNX file, a method and a target in, a bundle out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttac.build_graphs import Parts, build_graphs, plan_residuals
from ttac.finish import OverBudget, finish
from ttac.garbage import uncollected
from ttac.method_facts import anchor_of, head_of, refine, settled
from ttac.options import ALL, Request, request
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
    method: str = "tent",
    target: str = "cpu",
    output: str | Path | None = None,
    batch: int | None = None,
    calibration: str | Path | np.ndarray | None = None,
    norms: str = "auto",
    train: str = "norms",
    quantize: str | None = None,
    memory_budget: int | str | None = None,
    settings: Mapping[str, Any] | None = None,
    emit: str | None = None,
    dump: str | Path | None = None,
    dry_run: bool = False,
    input: str | None = None,
    logits: str | None = None,
    shape: tuple[int, ...] | None = None,
    head: str = "auto",
    pixels: str | Sequence[str] | Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Compile the ONNX file `path` for test-time adaptation; returns the bundle, written to the folder `output`.

    Args:
        method, target: names (`ttac methods`, `ttac targets`), or for the target a `.toml` file.
        batch: samples per step to plan for; the target's own by default.
        calibration: a few hundred unlabelled source samples: float32 array [n, ...], `.npz`, `.npy` or a folder of
            images.
        norms: "auto" inserts norms only into a file that has none, "insert" after every Conv with a bias, "keep"
            never.
        train: which sites are adapted: "norms" for all, "all" with all other weights besides, or comma-separated
            selectors (`ttac.passes.norms.selectors`).
        quantize: "int8" runs the layers in 8 bits; needs `calibration`.
        memory_budget: bytes, or a size such as "64MiB", that a step may use beyond the loaded bundle.
        settings: the method's hyperparameters (`ttac methods NAME`).
        dump: folder that gets the graph after each room.
        dry_run: plan and report without writing `output`; the returned Bundle has no folder.
        input, logits: names of the graph's input and output where it has several.
        shape: of one sample, where the file leaves it open.
        head: how the output is read: "classes", "binary" or "dense"; "auto" tells from its shape and last operators.
        pixels: how bytes, and so images, become the model's input: "imagenet", or a mapping with `mean`, `std`,
            `range` and `layout`; kept in the manifest (`ttac.samples.pixels`).
        say: gets one line per room.

    Raises:
        UsageError, UnsupportedError, BudgetError, RuntimeMissingError, VerificationError: see `ttac.errors`; nothing
            is left behind.
    """
    asked = request(
        path,
        method=method,
        target=target,
        output=output,
        batch=batch,
        calibration=calibration,
        norms=norms,
        train=train,
        quantize=quantize,
        memory_budget=memory_budget,
        settings=settings,
        emit=emit,
        dump=dump,
        dry_run=dry_run,
        input=input,
        logits=logits,
        shape=shape,
        head=head,
        pixels=pixels,
    )
    with uncollected():
        return compile_request(asked, say)


def compile_request(asked: Request, say: Callable[[str], None]) -> Bundle:
    """The rooms, one after the other."""
    rooms = Rooms(say, asked.dump)
    source = rooms.loaded(load(asked.path, input=asked.input, output=asked.logits, say=rooms.note))
    asked, plain = lifted(asked, source, rooms.note)
    samples = samples_of(asked, plain, rooms.note)
    model = rooms.normalised(normalise(plain, shape=asked.shape or samples.shape, say=rooms.note))
    head = rooms.headed(head_of(asked, model))
    sites = rooms.recognised(model, choose_sites(model, asked, samples, rooms.note))
    asked = settled(asked, model, head, sites, samples, rooms.note)
    quantized = rooms.quantized(model, quantize_frozen(asked, model, sites, samples))
    sites = quantized.sites
    owned = own_weights(model) if asked.train == ALL else []
    infer = model.clone()
    name_parameters(infer, sites)
    statistics = asked.method.statistics(asked.settings)
    adaptation = adapt_norms(model, sites, statistics, asked.settings, trains=asked.method.trains, batch=asked.batch)
    refine(asked, model, head)
    adaptation = replace(adaptation, parameters=(*adaptation.parameters, *train_weights(model, owned)))
    rooms.adapted(model, adaptation)
    anchor = rooms.anchored(anchor_of(asked, model, adaptation, samples, head))
    logits = model.graph.outputs[0]
    joint = differentiate_loss(model, logits, asked.method.loss, adaptation.parameters, head)
    joint = rooms.differentiated(own_logits(joint) if runs_again(asked.method.program) else joint)
    parts = Parts(asked, infer, sites, adaptation, joint, anchor, head, quantized)
    return fit(parts, source, samples, rooms)


def fit(parts: Parts, source: ir.Model, samples: Samples, rooms: Rooms) -> Bundle:
    """Build and finish the bundle; where it measures above the budget, plan for less as long as there is less."""
    goal = budget = parts.request.budget
    refused: list[OverBudget] = []
    for left in reversed(range(TRIES)):
        planned = plan_residuals(parts, goal)
        rooms.planned(planned.plan)
        compiled = build_graphs(parts, planned, rooms)
        try:
            return finish(compiled, source, parts.joint, samples, rooms)
        except OverBudget as error:
            refused.append(error)
            if goal is None or budget is None or not planned.more or not left:
                break
            # The last try is for the least there is.
            goal = int(goal * min(budget / error.needs, 0.92)) if left > 1 else 0
            if planned.layers:
                parts = parts.keeping(min(budget / error.needs, 0.8) if left > 1 else 0.0)
            rooms.note(f"needs {format_size(error.needs)}: planned again")
    raise min(refused, key=lambda error: error.needs)
