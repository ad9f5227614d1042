"""The last rooms: write the bundle beside its place, verify and measure it there, and only then put it in place."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.bundle_writer import Compiled, manifest, report, write_files
from ttac.errors import BudgetError, UsageError
from ttac.options import CompileOptions
from ttac.passes.adapt.adapt_norms import adapt_norms, without_adaptation
from ttac.passes.differentiate.joint import Joint
from ttac.passes.differentiate.losses import WEIGHTS
from ttac.passes.graph.execute import run
from ttac.passes.graph.expand import expand_all
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.keys import LIKELY_BYTES
from ttac.passes.graph.shapes import dims
from ttac.passes.lower.fed_weights import feed_pointwise
from ttac.passes.lower.lower import lower
from ttac.passes.plan.liveness import peak
from ttac.passes.plan.published_cache import published_cache
from ttac.passes.quantize.float_layers import refuse_float_layers
from ttac.passes.verify.compare import (
    Halves,
    Verified,
    check_files,
    compare_halves,
    logits_off,
    quantization_error,
    relative,
    residual_error,
    slope_error,
)
from ttac.program_writer import Word, programs, stages_of, unguarded
from ttac.reports.measure import measure
from ttac.reports.progress import Rooms
from ttac.runtime.bundle import Bundle, place, write_manifest
from ttac.sites import Samples
from ttac.sizes import format_size

MARGIN = 1.05
"""By how much the measured peak may differ from one run to the next."""
SAMPLES = 32
"""Calibration samples that the logits of an 8-bit bundle are compared on."""
ELEMENTS = 8
"""Elements of a channel that batch statistics get at least in the verification; it runs on as few samples as it can."""


class OverBudget(BudgetError):
    """A step measured above the budget; `needs` is what it takes, in bytes."""

    def __init__(self, needs: int, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.needs = needs


def finish(compiled: Compiled, source: ir.Model, joint: Joint, samples: Samples, rooms: Rooms) -> Bundle:
    """Write, verify, measure, and move into place; on any error nothing is left at the output."""
    asked = compiled.request
    with staging(asked) as staged:
        write_files(compiled, staged)
        verified = check(compiled, source, joint, samples, staged)
        rooms.verified(verified.as_dict())
        verified.refuse()
        expected = planned(compiled)
        seal(compiled, staged, verified, expected, rooms, unguarded(compiled))
        memory = {**expected, **measured(compiled, staged, rooms, expected["planned"])}
        refuse_over_budget(compiled, memory)
        seal(compiled, staged, verified, memory, rooms, programs(compiled))
        if asked.dry_run:
            return Bundle.dry(staged)
        return place(staged, asked.output)


@contextmanager
def staging(asked: CompileOptions) -> Iterator[Path]:
    """An empty folder on the output's file system; whatever was made for it is gone again unless the bundle is there.

    Raises UsageError if nothing can be written there.
    """
    parent = asked.output.absolute().parent
    missing = [] if asked.dry_run else [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        for folder in reversed(missing):
            folder.mkdir()
        temporary = tempfile.TemporaryDirectory(prefix=".ttac-", dir=None if asked.dry_run else parent)
    except OSError as error:
        _remove_empty(missing)
        where, hint = f"`{asked.output}`", "choose another `-o`"
        raise UsageError(f"cannot write the bundle: {error.strerror}", where=where, hint=hint) from error
    try:
        with temporary as folder_name:
            staged = Path(folder_name) / "bundle"
            staged.mkdir()
            yield staged
    finally:
        _remove_empty(missing)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def check(compiled: Compiled, source: ir.Model, joint: Joint, samples: Samples, folder: Path) -> Verified:
    """The differences that verification found, on real executions of the written graphs."""
    check_files(folder, list(compiled.graphs))
    if compiled.quantized and compiled.quantized.modules:
        refuse_float_layers(folder / "forward.onnx", compiled.quantized.modules)
    initial = {tensor.name: tensor.initial for tensor in compiled.state}
    x = compiled.graphs["infer"].graph.inputs[0]
    count = max([2, *(-(-ELEMENTS // site.spatial) for site in compiled.sites)])
    weights = even_weights(joint, count)
    given = {WEIGHTS: weights, **other_view(joint, weights)}
    feeds = {**initial, **compiled.fed, **given, str(x.name): samples.few(count, x)}
    off, held = turned_off(compiled)
    rounded = rounding(compiled, source, samples)
    before = compiled.graphs["infer"] if rounded is not None else source
    difference = logits_off(before, off, {**held, **feeds}, compiled.logits)
    if not joint.gradients:
        return Verified(difference, quantized=rounded)
    written = Halves(folder, stages_of(compiled, "backward"))
    gradients = [str(value.name) for value in joint.gradients]
    whole = joint_graph(joint, compiled)
    with exact_halves(compiled, written) as halves:
        plain = Halves(halves.folder, halves.stages, optimised=False)
        logits, slopes = compare_halves(whole, plain, feeds, compiled.logits, gradients)
        optimised = relative(halves.run(feeds)[compiled.logits], plain.run(feeds)[compiled.logits])
        assert joint.loss is not None
        loss, of_scores = str((joint.loss.samples or joint.loss.scalar).name), None
        if joint.loss.fed and joint.loss.scores is not None:
            loss, of_scores = str(joint.loss.scores.name), loss_of_scores(joint, given)
        parameters = [tensor.name for tensor in joint.parameters]
        # A rounded loss is a staircase: it has no slope to compare with.
        sloping = rounded is None
        slope = slope_error(halves, feeds, loss, parameters, gradients, weights, of_scores) if sloping else None
        lost = None if halves is written else residual_error(written, halves, feeds, gradients)
    return Verified(difference, logits, slopes, optimised, slope, rounded, lost)


@contextmanager
def exact_halves(compiled: Compiled, written: Halves) -> Iterator[Halves]:
    """The halves with every residual kept as it is: those that were `written`, or else copies made for comparison."""
    if not compiled.exact:
        yield written
        return
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), compiled.exact)
        yield Halves(Path(folder), [name for name in compiled.exact if name != "forward"])


def rounding(compiled: Compiled, source: ir.Model, samples: Samples) -> float | None:
    """How far 8 bits move the logits of calibration or random samples, None where nothing was quantized."""
    if not (compiled.quantized and compiled.quantized.modules):
        return None
    infer = compiled.graphs["infer"]
    data = samples.few(SAMPLES, infer.graph.inputs[0]) if samples.array is None else samples.array[:SAMPLES]
    return quantization_error(source, infer, data, compiled.logits)


def even_weights(joint: Joint, count: int) -> np.ndarray:
    """Weights of the loss at every position of `count` samples, all the same and 1 in sum."""
    each = joint.loss.samples if joint.loss else None
    shape = [count if isinstance(size, str) else size for size in dims(each)] if each is not None else [count]
    return np.full(shape, 1 / math.prod(shape), np.float32)


def other_view(joint: Joint, weights: np.ndarray) -> dict[str, np.ndarray]:
    """What a loss of two views is fed besides the `weights`: random scores, and scalars as large as a weight."""
    found: dict[str, np.ndarray] = {}
    for value in joint.loss.fed if joint.loss else ():
        shape = [len(weights) if isinstance(size, str) else size for size in dims(value)]
        random = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        found[str(value.name)] = random if shape else np.full((), weights.reshape(-1)[0])
    return found


def loss_of_scores(joint: Joint, given: Mapping[str, np.ndarray]) -> Callable[[np.ndarray], float]:
    """The loss as a function of the scores and what is `given`, which no graph of the bundle computes."""
    loss = joint.loss
    assert loss is not None and loss.scores is not None
    scores, scalar = str(loss.scores.name), str(loss.scalar.name)
    graph = ir.convenience.extract(joint.model.graph, inputs=[loss.scores, *loss.given], outputs=[loss.scalar])
    model = ir.Model(graph, ir_version=joint.model.ir_version)
    expand_all(model, "verify")
    return lambda found: float(run(model, {**given, scores: found})[scalar])


def turned_off(compiled: Compiled) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The plain graph with its norms made adaptive, but by the source's statistics and parameters; and the latter."""
    model = compiled.graphs["infer"].clone()
    nodes = {str(node.name): node for node in model.graph}
    sites = [replace(site, node=nodes[str(site.node.name)]) for site in compiled.sites]
    statistics, settings = without_adaptation(compiled.statistics, compiled.request.settings)
    made = adapt_norms(model, sites, statistics, settings, trains=bool(compiled.request.method.trains))
    return lower(model, compiled.request.target), {tensor.name: tensor.initial for tensor in made.state}


def joint_graph(joint: Joint, compiled: Compiled) -> ir.Model:
    """The joint graph before the plan cut it, spelled as the halves are: what they must agree with."""
    model = joint.model.clone()
    values = ir.convenience.create_value_mapping(model.graph)
    names = [joint.logits.name, *(gradient.name for gradient in joint.gradients)]
    model.graph.outputs[:] = [values[str(name)] for name in names]
    lower(model, compiled.request.target)
    feed_pointwise([model])
    return model


def seal(
    compiled: Compiled,
    folder: Path,
    verified: Verified,
    memory: Mapping[str, Any],
    rooms: Rooms,
    steps: Mapping[str, Sequence[Word]],
) -> None:
    """Write report and manifest, with the programs `steps`, for the files in `folder`."""
    (folder / "report.json").write_text(report(compiled, verified.as_dict(), memory, rooms.lines), encoding="utf-8")
    write_manifest(folder, manifest(compiled, folder, verified.as_dict(), memory, steps))


def planned(compiled: Compiled) -> dict[str, Any]:
    """Bytes of the residuals as planned, had all been kept dense, and alive at the highest moment of a step.

    Where a share of a layer's input is kept that depends on the data, these are the most it can be, and `usual` is the
    highest moment with the shares that are usual.  Beside them, the cache as papers count it.
    """
    plan = compiled.plan
    counted = published_cache(compiled.graphs["infer"].graph, compiled.sites).as_dict(compiled.request.batch)
    if plan is None:
        return {"planned": {}, "published_cache": counted}
    order = ["forward", *stages_of(compiled, "backward"), *stages_of(compiled, "update")]
    highest = peak(compiled.graphs, order, plan.batch)
    sizes = {"residuals": plan.bytes, "dense": plan.dense, "peak": highest.bytes, "batch": plan.batch}
    if plan.shares is not None and plan.shares.moves:
        sizes["usual"] = peak(compiled.graphs, order, plan.batch, LIKELY_BYTES).bytes
    return {"planned": sizes, "published_cache": counted}


def measured(compiled: Compiled, folder: Path, rooms: Rooms, expected: Mapping[str, int]) -> dict[str, Any]:
    """Peak and loaded bytes of the bundle in a fresh process; a few steps suffice to reach the peak."""
    found = measure(folder, steps=3, threads=compiled.request.target.threads or None)
    rooms.measured(found, expected)
    return {"measured": found or {}}


def refuse_over_budget(compiled: Compiled, memory: Mapping[str, Any]) -> None:
    """Raise BudgetError if the measured peak is above `--memory-budget`, or all memory above the target's.

    Where memory cannot be measured, the planned residuals stand for the peak: a step needs at least those.  Where the
    data decides how much is kept, a budget must also hold for the most that can be.
    """
    asked, plan = compiled.request, compiled.plan
    taken = memory["measured"].get("peak", plan.bytes if plan else 0)
    if asked.memory_budget is not None and asked.method.drops(asked.settings):
        taken = max(taken, memory["planned"].get("peak", 0))
    needs, allowed, option = taken, asked.memory_budget, "--memory-budget"
    hint = f"lower `--batch` (now {asked.batch}), or adapt fewer sites with `--train`"
    if allowed is None:
        loaded = memory["measured"].get("loaded", 0)
        needs, allowed, option = taken + loaded, asked.target.memory, f"memory of target `{asked.target.name}`"
    else:
        hint += f"; as it is, the least that works is about `{option} {format_size(MARGIN * needs).replace(' ', '')}`"
    if needs <= allowed:
        return
    raise OverBudget(
        needs,
        f"a step needs {format_size(needs)}, the {option} is {format_size(allowed)}",
        where="\n     ".join(
            f"{row.value}: {format_size(row.bytes)}, {row.how}" for row in (plan.largest() if plan else [])
        ),
        hint=hint,
    )
