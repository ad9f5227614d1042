"""`ttac compile`, room by room: an ONNX file, a method and a target in, a bundle out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ttac.finish import finish
from ttac.method import anchor_of, facts_of, method_graphs
from ttac.packing import Compiled
from ttac.passes.adapt import Adaptation, adapt_norms
from ttac.passes.differentiate import Joint, differentiate_loss
from ttac.passes.feed import feed_pointwise
from ttac.passes.load import load
from ttac.passes.lower import lower
from ttac.passes.normalise import normalise
from ttac.passes.partition import partition
from ttac.passes.plan import plan_activations
from ttac.passes.stages import split_backward
from ttac.request import Request, request
from ttac.rooms import Rooms
from ttac.sites import choose_sites, name_parameters, samples_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from ttac.passes.norms import NormSite
    from ttac.runtime.bundle import Bundle

STAGES = 6
"""Graphs that the backward is cut into at most; each run costs a fraction of a millisecond."""


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
        train: which sites are adapted: "norms" for all, or comma-separated name patterns.
        memory_budget: bytes, or a size such as "64MiB", that a step may use beyond the loaded bundle.
        settings: the method's hyperparameters (`ttac methods NAME`).
        dump: folder that gets the graph after each room.
        dry_run: plan and report without writing `output`; the returned Bundle has no folder.
        input, logits: names of the graph's input and output where it has several.
        shape: of one sample, where the file leaves it open.
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
    )
    return compile_request(asked, say)


def compile_request(asked: Request, say: Callable[[str], None]) -> Bundle:
    """The rooms, one after the other."""
    rooms = Rooms(say, asked.dump)
    source = rooms.loaded(load(asked.path, input=asked.input, output=asked.logits, say=rooms.note))
    samples = samples_of(asked, source, rooms.note)
    model = rooms.normalised(normalise(source, shape=asked.shape or samples.shape, say=rooms.note))
    sites = rooms.recognised(model, choose_sites(model, asked, samples, rooms.note))
    asked = asked.settled(facts_of(asked, model, sites))
    infer = model.clone()
    name_parameters(infer, sites)
    statistics = asked.method.statistics(asked.settings)
    adaptation = adapt_norms(model, sites, statistics, asked.settings, trains=asked.method.trains)
    rooms.adapted(model, adaptation)
    anchor = rooms.anchored(anchor_of(asked, model, adaptation, samples))
    logits = model.graph.outputs[0]
    joint = rooms.differentiated(differentiate_loss(model, logits, asked.method.loss, adaptation.parameters))
    compiled = build_graphs(asked, infer, sites, adaptation, joint, anchor, rooms)
    return finish(compiled, source, joint, samples, rooms)


def build_graphs(
    asked: Request,
    infer: ir.Model,
    sites: list[NormSite],
    adaptation: Adaptation,
    joint: Joint,
    anchor: Mapping[str, np.ndarray],
    rooms: Rooms,
) -> Compiled:
    """Plan, partition, add the method's own graphs, and lower every graph for the target."""
    graph = joint.model.graph
    plan = rooms.planned(plan_activations(graph, joint.backward, list(graph.inputs), asked.batch, asked.budget))
    tracked = [tensor.next for tensor in adaptation.tracked if tensor.next is not None]
    outputs = joint.loss.outputs if joint.loss else []
    halves = partition(joint.model, [joint.logits, *outputs, *tracked], joint.gradients, plan)
    graphs = {"infer": infer, "forward": halves.forward}
    moves = {"forward": {str(t.next.name): t.name for t in adaptation.tracked if t.next is not None}}
    stats = {"forward": {str(value.name): name for name, value in joint.loss.stats.items()} if joint.loss else {}}
    state = list(adaptation.tracked)
    if halves.backward is not None:
        stages = split_backward(halves.backward, halves.residuals, asked.batch, STAGES)
        steps = method_graphs(asked, joint, anchor)
        graphs |= {**named_stages(stages), **{name: step.model for name, step in steps.items()}}
        moves |= {name: step.moves for name, step in steps.items()}
        stats |= {name: dict(step.stats) for name, step in steps.items()}
        state += {tensor.name: tensor for step in steps.values() for tensor in step.state}.values()
    for model in graphs.values():
        lower(model, asked.target)
    fed = feed_pointwise(model for name, model in graphs.items() if name != "infer")
    rooms.lowered(graphs)
    return Compiled(
        asked,
        graphs,
        sites=sites,
        statistics=adaptation.statistics,
        state=[replace(tensor, next=None) for tensor in state],
        moves=moves,
        stats=stats,
        fed=fed,
        plan=plan,
    )


def named_stages(stages: list[ir.Model]) -> dict[str, ir.Model]:
    """The stages of the backward by the names of their files."""
    names = ["backward"] if len(stages) == 1 else [f"backward-{i}" for i in range(1, len(stages) + 1)]
    return dict(zip(names, stages, strict=True))
