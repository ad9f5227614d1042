"""Bundles whose input sizes stay open: the graphs of several sizes become graphs for every size up to the largest."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, islice

import numpy as np
import onnx_ir as ir

from ttac.build_graphs import PlanChoice, WholeGraphs, finished_graphs, whole_graphs
from ttac.bundle_content import BundleContent, OpenSize
from ttac.compile_state import CompileState
from ttac.errors import TtacError, UnsupportedError, UsageError
from ttac.passes.graph.execute import run
from ttac.passes.graph.sample_set import random_samples
from ttac.passes.load.input_axes import axes_of
from ttac.passes.lower.free_sizes import forget_sizes, free_sizes
from ttac.passes.plan.keep_ratios import layers_of, with_encoded
from ttac.passes.verify.compare import relative, relative_outputs
from ttac.passes.verify.references import even_weights, loss_feeds
from ttac.program_writer import source_set
from ttac.reports.progress import RoomLog
from ttac.rooms import adapt_model, choose_norms, differentiate_model, normalise_model, read_head
from ttac.runtime.records import BATCH_AXIS
from ttac.source_samples import Samples

OPTION = "--max-shape"
COMPARED = 3
"""Number of sizes whose graphs are compared; the largest size is a further check."""
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
"""Steps of the sizes, tried in turn: a network that halves its input five times and joins the halves needs 32."""
STEPS = ((1, 2, 3), (2, 3, 1), (3, 1, 2), (1, 3, 2), (2, 1, 3), (3, 2, 1))
"""Distances of the compared sizes from the largest, for each open size in another order."""
ODD = (0, 1, 3)
"""Further distances of sizes that need not be a multiple of a step: rounded halves then differ from halves."""
MOST_SETS = 6
"""Largest number of sets of sizes that are fixed in turn, where not all sizes can stay open."""
AGREED = 1e-4
"""Largest relative difference between an open graph and the graph of one size."""


@dataclass(frozen=True)
class OpenAxes:
    """The open axes of the inputs: name of the input -> axis -> symbol, and the largest size of each symbol."""

    symbols: Mapping[str, Mapping[int, str]]
    largest: Mapping[str, int]

    def without(self, bound: Collection[str]) -> OpenAxes:
        """The axes whose symbols are not in `bound`."""
        symbols = {
            name: {axis: symbol for axis, symbol in own.items() if symbol not in bound}
            for name, own in self.symbols.items()
        }
        return OpenAxes(symbols, {symbol: size for symbol, size in self.largest.items() if symbol not in bound})


def open_axes(state: CompileState) -> OpenAxes:
    """The axes that the file leaves open, with the sizes of the compile; raises UsageError if there is none."""
    named, axes = {str(value.name): value for value in _user_inputs(state)}, axes_of(state.source)
    symbols: dict[str, dict[int, str]] = {}
    largest: dict[str, int] = {}
    for value in state.source.graph.inputs:
        name, sizes = str(value.name), named[str(value.name)].shape
        for axis, size in enumerate(value.shape or ()):
            bound = sizes[axis] if sizes is not None else None
            is_fixed = isinstance(size, int) and size > 0
            if is_fixed or axis == axes[name] or not isinstance(bound, int):
                continue
            stated = None if isinstance(size, int) else size.value
            symbol = stated if stated and stated not in (BATCH_AXIS, "?") else f"{name}.{axis}"
            symbols.setdefault(name, {})[axis] = symbol
            largest[symbol] = bound
    if not largest:
        raise UsageError("the file leaves no size open", where=f"`{OPTION}`", hint="leave the option out")
    return OpenAxes(symbols, largest)


def open_content(state: CompileState, choice: PlanChoice, fixed: BundleContent, log: RoomLog) -> BundleContent:
    """The bundle `fixed`, with graphs for every size up to that of `state`.

    Where a node binds one of several open sizes, this size stays as it is, and the log names the node.  Raises
    UnsupportedError at a node that binds all sizes, or if the graphs of two sizes disagree.
    """
    axes = open_axes(state)
    try:
        return _at_a_multiple(state, choice, fixed, axes)
    except (UnsupportedError, UsageError) as error:
        for bound in _bound_first(axes):
            try:
                content = _at_a_multiple(state, choice, fixed, axes.without(bound))
            except (UnsupportedError, UsageError):
                continue
            kept = ", ".join(f"`{symbol}` at {axes.largest[symbol]}" for symbol in bound)
            log.note(f"{kept} stays fixed: {' '.join((error.where or error.problem).split())}")
            return content
        raise


def _bound_first(axes: OpenAxes) -> list[tuple[str, ...]]:
    """Sets of symbols to fix in turn, the smallest sets first."""
    sets = (combinations(axes.largest, count) for count in range(1, len(axes.largest)))
    return list(islice(chain.from_iterable(sets), MOST_SETS))


def _at_a_multiple(state: CompileState, choice: PlanChoice, fixed: BundleContent, axes: OpenAxes) -> BundleContent:
    """The bundle with open sizes that are a multiple of the smallest step that works; raises the last error."""
    last: TtacError | None = None
    for multiple in MULTIPLES:
        sizes = list(compared_sizes(axes.largest, multiple))
        if not sizes:
            continue
        try:
            return _opened(state, choice, fixed, axes, sizes, multiple)
        except (UnsupportedError, UsageError) as error:
            last = error
    hint = f"give a larger `{OPTION}`, or fix the size with `--shape`"
    raise last or UnsupportedError("the sizes are too small to stay open", where=f"`{OPTION}`", hint=hint)


def compared_sizes(largest: Mapping[str, int], multiple: int) -> Iterator[dict[str, int]]:
    """Yield `COMPARED` sizes below the largest by symbol, each a multiple; none if the largest sizes are too small."""
    if any(size % multiple or size < (COMPARED + 2) * multiple for size in largest.values()):
        return
    for number in range(COMPARED):
        chosen = {}
        for place, (name, size) in enumerate(largest.items()):
            distance = STEPS[place % len(STEPS)][number]
            step = max(multiple, size // 16 // multiple * multiple)
            odd = ODD[number] + 2 * place if multiple == 1 else 0
            chosen[name] = max(multiple, size - distance * step - odd)
        yield chosen


def _opened(
    state: CompileState,
    choice: PlanChoice,
    fixed: BundleContent,
    axes: OpenAxes,
    sizes: Sequence[Mapping[str, int]],
    multiple: int,
) -> BundleContent:
    states = [at_sizes(state, axes, each) for each in sizes]
    wholes = [whole_graphs(each, _choice(each, choice)) for each in states]
    _refuse_other_graphs(wholes)
    freed = {name: free_sizes([whole.graphs[name] for whole in wholes]) for name in wholes[0].graphs}
    whole = {name: model for name, (model, _) in freed.items()}
    graphs, fed_weights = finished_graphs(states[0], whole, wholes[0].residuals)
    for name, model in graphs.items():
        forget_sizes(model, freed["backward" if name.startswith("backward") else name][1], axes.symbols)
    sizes_of = tuple(OpenSize(name, size, multiple, multiple) for name, size in axes.largest.items())
    fed_weights |= source_set(state.options.method.program, fixed.joint.parameters)
    content = replace(fixed, graphs=graphs, fed_weights=fed_weights, sizes=sizes_of, fixed=fixed)
    for each, own in zip(states, wholes, strict=True):
        _compare(content, each, own)
    return content


def _user_inputs(state: CompileState) -> list[ir.Value]:
    """The inputs of the model, without those for state."""
    return [value for value in state.model.graph.inputs if value.name in state.inputs]


def _choice(state: CompileState, choice: PlanChoice) -> PlanChoice:
    assert state.joint is not None
    return replace(choice, layers=with_encoded(layers_of(state.joint), choice.plan) if choice.layers else ())


def at_sizes(state: CompileState, axes: OpenAxes, sizes: Mapping[str, int]) -> CompileState:
    """The compile of `state` up to the joint graph, for inputs of other sizes; constants and settings are the same."""
    log = RoomLog(lambda line: None)
    shapes: dict[str, tuple[int, ...]] = {}
    for value in _user_inputs(state):
        name = str(value.name)
        own, sample = axes.symbols.get(name, {}), axes_of(state.source)[name]
        shape = [sizes[own[axis]] if axis in own else size for axis, size in enumerate(value.shape or ())]
        shapes[name] = tuple(int(str(size)) for axis, size in enumerate(shape) if axis != sample)
    options = replace(state.options, shape=shapes, train="norms")
    samples = Samples(moments=state.samples.moments)
    small = CompileState(options=options, source=state.source, model=state.source, samples=samples)
    small = read_head(normalise_model(small, log), log)
    if small.head is not None and state.head is not None:
        small = replace(small, head=replace(small.head, ignored=state.head.ignored))
    small = choose_norms(small, log)
    known = {site.name: site for site in state.sites}
    sites = [replace(site, trained=known[site.name].trained) for site in small.sites if site.name in known]
    small = replace(small, options=replace(options, train=state.options.train), sites=tuple(sites))
    small = adapt_model(small, log)
    small = replace(small, constants=state.constants, usual_information=state.usual_information)
    return differentiate_model(small, log)


def _refuse_other_graphs(wholes: Sequence[WholeGraphs]) -> None:
    """Raise UnsupportedError if the sizes have different graphs, or state of different shapes."""
    if any(list(whole.graphs) != list(wholes[0].graphs) for whole in wholes):
        raise UnsupportedError("other sizes need other graphs", hint="state the size of the device: `--shape`")
    for whole in wholes:
        for name, step in whole.steps.items():
            for tensor, first in zip(step.state, wholes[0].steps[name].state, strict=True):
                if tensor.initial.shape != first.initial.shape:
                    problem = f"the state `{tensor.name}` of the method has the size of the input"
                    raise UnsupportedError(problem, hint="state the size of the device: `--shape`")


def _compare(content: BundleContent, state: CompileState, own: WholeGraphs) -> None:
    """Raise UnsupportedError if the open graphs differ from those of one size, in outputs, state or gradients."""
    joint = state.joint
    assert joint is not None
    inputs = _user_inputs(state)
    count = 1 if content.state.single else 2
    initial = {tensor.name: tensor.initial for tensor in content.tensors}
    of_loss = loss_feeds(joint, even_weights(joint, count))
    feeds = {**initial, **content.fed_weights, **of_loss, **random_samples(inputs, count).arrays}
    names = {"infer": ["infer"], "forward": ["forward"], "backward": content.stages("backward")}
    found = _executed({part: [content.graphs[name] for name in names[part]] for part in names}, feeds, content)
    graphs = {part: [own.graphs[part]] if part in own.graphs else [] for part in names}
    expected = _executed(graphs, feeds, content)
    for name, array in expected.items():
        if name not in found or found[name].dtype.kind != "f":
            continue
        off = relative_outputs(found[name], array) if name in content.outputs else relative(found[name], array)
        if not off <= AGREED:
            shape = {str(value.name): [str(size) for size in value.shape or ()] for value in inputs}
            problem = f"`{name}` of the graphs with open sizes is off by {off:.1e} at {shape}"
            raise UnsupportedError(problem, hint="state the size of the device: `--shape`")


def _executed(
    graphs: Mapping[str, Sequence[ir.Model]], feeds: Mapping[str, np.ndarray], content: BundleContent
) -> dict[str, np.ndarray]:
    """Outputs of the source graph, of the forward and of the backward, unoptimised."""
    values = dict(run(graphs["infer"][0], feeds, optimised=False))
    forward = run(graphs["forward"][0], feeds, optimised=False)
    moved = {state: forward[output] for output, state in content.moves["forward"].items() if output in forward}
    values |= forward
    for model in graphs["backward"]:
        values |= run(model, {**feeds, **values, **moved}, optimised=False)
    return values
