"""The hooks of a method on the model at hand: its defaults, checks, constants and graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac import methods
from ttac.compile_state import CompileState
from ttac.errors import UnsupportedError, UsageError
from ttac.guard_defaults import guard_graph, guard_without_loss, settled_guard
from ttac.options import CompileOptions
from ttac.passes.adapt.adapt_norms import Adaptation
from ttac.passes.differentiate.head_clues import box_output, padding_mask, reads_text
from ttac.passes.differentiate.heads import Head, decide_head
from ttac.passes.graph.execute import run
from ttac.passes.graph.sample_set import SampleSet
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor
from ttac.passes.load.model_file import OUTPUTS
from ttac.passes.normalise.normal_form import batch_first
from ttac.passes.normalise.single_sample import SINGLE
from ttac.passes.norms.norm_sites import NormSite
from ttac.passes.plan.keep_ratios import Layer
from ttac.passes.step_graphs import error_estimate, prior_correction
from ttac.passes.step_graphs.answer import refuse_other_answers
from ttac.passes.step_graphs.context import Context, MethodGraph, Subject
from ttac.passes.step_graphs.error_estimate import ESTIMATE
from ttac.passes.step_graphs.guard import GUARD
from ttac.passes.step_graphs.window import PREDICT, WINDOW
from ttac.samples.images import preparation
from ttac.spec import WITHOUT_PREDICTIONS, Facts, Method, function_of

TAKEN = frozenset({"backward", "forward", "infer", ESTIMATE, GUARD, PREDICT, WINDOW, prior_correction.CORRECT})
"""Names of ttac's own graphs, which no graph of a method may have."""
READ_SAMPLES = 16
"""Number of samples that show which class is the blank of a reader of text."""


def outputs_of(source: ir.Model, model: ir.Model) -> tuple[str, ...]:
    """Names of the outputs of the normal form `model`, in the order of the file that `source` was loaded from."""
    kept = {str(value.name) for value in model.graph.outputs}
    return tuple(name for name in source.meta[OUTPUTS] if name in kept)


def head_of(
    options: CompileOptions, model: ir.Model, outputs: Sequence[str], samples: SampleSet | None = None
) -> Head | None:
    """The reading of the normal form's first output; None if it is unclear and the method needs none.

    The blank of a reader of text, and the background of a detector, is the first or the last class, whichever more
    positions of the `samples` have.

    Raises UnsupportedError if the method, or the user, needs the reading, UsageError if several of the `outputs` could
    be meant.
    """
    output = model.graph.outputs[0]
    clues: dict[str, Any] = {"reads_text": reads_text(model), "boxes": box_output(model, output)}
    judged = prior_correction.is_on(options.settings) or error_estimate.is_on(options.settings)
    learns = bool(options.method.loss or options.method.refine or judged)
    if options.head in WITHOUT_PREDICTIONS:
        refuse_without_predictions(options, learns)
        return None
    needed = learns or options.head != "auto" or options.axis is not None or options.background != "auto"
    if needed and options.logits is None:
        refuse_several(model, outputs)
    try:
        head = decide_head(output, options.head, options.axis, background=options.background, **clues)
    except UnsupportedError:
        if needed:
            raise
        return None
    head = replace(head, mask=padding_mask(model, head) if options.head in ("auto", "tokens") else "")
    if options.head == "tokens" and not head.mask:
        shape = str(list(head.positions)).replace("'", "")
        problem = f"no input of whole numbers or truth values with `mask` in its name has the shape {shape}"
        raise UnsupportedError(problem, where="`--head tokens`", hint="`--head dense`, where padding counts")
    if head.ignored is None or samples is None or options.background != "auto":
        return head
    return replace(head, ignored=blank_of(model, head, samples.first(READ_SAMPLES)))


def refuse_without_predictions(options: CompileOptions, learns: bool) -> None:
    """Raise UnsupportedError for a method that learns from predictions, and an output without any."""
    if learns:
        problem = f"`{options.method.name}` learns from predictions, and a head `{options.head}` has none"
        hint = f"methods without a loss: {without_loss()}"
        raise UnsupportedError(problem, where=f"`--head {options.head}`", hint=hint)


def blank_of(model: ir.Model, head: Head, samples: SampleSet) -> int:
    """The first or the last class, whichever more positions of the samples have."""
    name, last = str(model.graph.outputs[0].name), head.classes - 1
    counts = np.zeros(2, int)
    for feeds in samples.batches(1 if model.meta.get(SINGLE) else READ_SAMPLES):
        classes = run(model, feeds, [name])[name].argmax(axis=head.axis)
        counts += [(classes == 0).sum(), (classes == last).sum()]
    return last if counts[1] > counts[0] else 0


def refuse_several(model: ir.Model, outputs: Sequence[str]) -> None:
    """Raise UsageError if more than one output of the normal form may hold predictions: integers never do."""
    named = {str(value.name): value for value in model.graph.outputs}
    floats = [named[name] for name in outputs if named[name].dtype == ir.DataType.FLOAT]
    if len(floats) > 1:
        likeliest = str(model.graph.outputs[0].name).removesuffix(batch_first(""))
        raise UsageError(
            f"the model has {len(floats)} outputs that could hold predictions; a loss reads one, all are returned",
            where="\n     ".join(f"`{value.name}` {value.shape}" for value in floats),
            hint=f"say which, perhaps `--logits {likeliest}`; methods without a loss need no choice: {without_loss()}",
        )


def without_loss() -> str:
    """The names of the methods that need no reading of the output, as a hint lists them."""
    every = [methods.find(name) for name in methods.names()]
    return ", ".join(f"`{method.name}`" for method in every if not method.loss and not method.refine)


def subject_of(state: CompileState, say: Callable[[str], None]) -> Subject:
    """The model that the method's hooks see."""
    return Subject(
        model=state.model,
        head=state.head,
        sites=state.sites,
        settings=state.options.settings,
        batch=state.options.batch,
        target=state.options.target,
        samples=state.samples.known,
        adaptation=state.adaptation,
        say=say,
    )


def settled(state: CompileState, say: Callable[[str], None]) -> CompileState:
    """The state with the defaults that depend on the model, and with the sites that train.

    Raises UnsupportedError or UsageError if the model takes no images such as `--pixels` states, or the method refuses
    the model or the samples.
    """
    options, method = state.options, state.options.method
    kinds = frozenset(site.kind for site in state.sites)
    facts = Facts(options.batch, state.head.classes if state.head else 1, kinds)
    state = state.with_settings(settled_guard(method.settle(options.settings, facts), kinds))
    if options.pixels:
        preparation(["N", *dims(state.model.graph.inputs[0])[1:]], options.pixels)
    subject = subject_of(state, say)
    if method.check:
        function_of(method.check)(subject)
    if prior_correction.is_on(subject.settings):
        refuse_other_answers(subject, "`prior_correction` corrects the frequencies of classes")
    if method.choose_trained and options.train == "norms":
        state = replace(state, sites=_trained(subject, function_of(method.choose_trained)(subject)))
    return state


def _trained(subject: Subject, names: frozenset[str]) -> tuple[NormSite, ...]:
    """The sites, of which those in `names` train."""
    left = sorted(site.name for site in subject.sites if site.name not in names)
    if left:
        subject.say(f"{len(left)} norms stay untrained: {', '.join(left)}")
    return tuple(replace(site, trained=site.trained and site.name in names) for site in subject.sites)


def refine(state: CompileState, say: Callable[[str], None]) -> Adaptation:
    """Rewrite the adapted model by the method's hook and for the estimate, in place; the adaptation with new state."""
    adaptation, hook, subject = state.adaptation, state.options.method.refine, subject_of(state, say)
    tensors: list[StateTensor] = list(function_of(hook)(subject)) if hook else []
    tensors += [error_estimate.observe(subject)] if error_estimate.is_on(subject.settings) else []
    parameters = [tensor for tensor in tensors if tensor.next is None]
    tracked = [tensor for tensor in tensors if tensor.next is not None]
    return replace(
        adaptation,
        parameters=(*adaptation.parameters, *parameters),
        tracked=(*adaptation.tracked, *tracked),
    )


def constants_of(state: CompileState, say: Callable[[str], None]) -> Mapping[str, np.ndarray]:
    """The arrays that the method computes once, while compiling."""
    constants: Mapping[str, np.ndarray] = {}
    if state.options.method.constants:
        constants = function_of(state.options.method.constants)(subject_of(state, say))
    return constants


def _context(state: CompileState, layers: Sequence[Layer] = ()) -> Context:
    """The values and settings that further graphs are built from."""
    options, joint = state.options, state.joint
    assert joint is not None
    scores, head = (joint.loss.scores, joint.loss.head) if joint.loss else (None, state.head)
    assert head is not None
    return Context(
        parameters=joint.parameters,
        gradients=[str(value.name) for value in joint.gradients],
        logits=str((scores or joint.logits).name),
        head=head,
        settings=options.settings,
        opset=joint.model.opset_imports[""],
        tracked=state.adaptation.tracked,
        constants=state.constants,
        layers=layers,
        x=joint.model.graph.inputs[0],
        output=str(joint.logits.name),
        batch=options.batch,
        logits_are_probabilities=scores is None and head.values == "probabilities",
    )


def correction_graph(state: CompileState) -> dict[str, MethodGraph]:
    """The graph that corrects the returned scores, if the option is on; a step with a window returns plain scores."""
    if not prior_correction.is_on(state.options.settings) or state.options.settings.get("window"):
        return {}
    returned = str(state.options.method.program[-1]["return"])
    own = "" if returned == "logits" else returned
    return {prior_correction.CORRECT: prior_correction.correct_prior(_context(state), own)}


def estimate_graph(state: CompileState) -> dict[str, MethodGraph]:
    """The graph that averages the estimate of the error, if the option is on."""
    if not error_estimate.is_on(state.options.settings):
        return {}
    context = _context(state)
    return {ESTIMATE: error_estimate.estimate(context.opset, context.classes)}


def refuse_taken_names(method: Method) -> None:
    """Raise UsageError for a graph of the method with a name of ttac's own, or with a hyphen, which marks stages."""
    for name in method.graphs:
        if name in TAKEN or not name.isidentifier():
            raise UsageError(
                f"a graph of the method is called `{name}`, and ttac's own graphs have such names",
                where=f"`Method.graphs` of `{method.name}`",
                hint="rename the graph: letters, digits and underscores, and none of "
                + ", ".join(f"`{taken}`" for taken in sorted(TAKEN)),
            )


def method_graphs(state: CompileState, layers: Sequence[Layer] = ()) -> dict[str, MethodGraph]:
    """The method's graphs by name, and those of the guard, in addition to forward and backward.

    A graph that has nothing to do on this model, such as one for averages of norms that keep none, is left out.

    Raises UsageError for a method with a graph of a name that is taken.
    """
    assert state.joint is not None
    method, loss = state.options.method, state.joint.loss
    refuse_taken_names(method)
    if loss is None and not method.graphs:
        return guard_without_loss(state)
    context = _context(state, layers)
    made = {name: function_of(reference)(context) for name, reference in method.graphs.items()}
    graphs = {name: graph for name, graph in made.items() if graph.model.graph.outputs}
    graphs |= guard_without_loss(state) if loss is None else guard_graph(state, context)
    more = {f"{name}-{i}": other for name, graph in graphs.items() for i, other in enumerate(graph.more, 1)}
    return {**graphs, **more}
