"""The rooms of a compile, from the file to the joint graph; each takes a state and returns a new one."""

from __future__ import annotations

from dataclasses import replace

from ttac.check_samples import INTERVAL as CHECK_INTERVAL
from ttac.check_samples import check_set
from ttac.compile_state import CompileState
from ttac.errors import UnsupportedError
from ttac.guard_defaults import usual_information
from ttac.learned_outputs import further_outputs, learned_outputs
from ttac.method_facts import constants_of, head_of, outputs_of, refine, settled
from ttac.options import ALL, CompileOptions, untrainable
from ttac.passes.adapt.adapt_norms import adapt_norms
from ttac.passes.adapt.own_parameters import name_parameters
from ttac.passes.adapt.train_weights import own_weights, train_weights
from ttac.passes.differentiate.joint import differentiate_loss, own_outputs
from ttac.passes.graph.state import bind_state
from ttac.passes.normalise.normal_form import batch_first, normalise
from ttac.passes.normalise.single_sample import SINGLE
from ttac.passes.norms.norm_sites import bind_sites
from ttac.passes.plan.moved_state import copy_moved_state
from ttac.passes.quantize.modules import quantize
from ttac.passes.quantize.quantized_files import grids_of, is_quantized, lift
from ttac.program_writer import runs_again
from ttac.reports.progress import RoomLog
from ttac.settings import QUANTIZATION
from ttac.sites import choose_sites
from ttac.source_model import load_source
from ttac.source_samples import samples_of


def load_model(options: CompileOptions, log: RoomLog) -> CompileState:
    """Read the file; an 8-bit file becomes a float model with its grids, and its layers run in 8 bits again.

    Raises UsageError and UnsupportedError for a file that is no model, for an 8-bit file whose weights are to be
    trained, and for 8-bit layers in a form without meaning.
    """
    source = load_source(options.path, vars(options), log.note)
    log.load(source)
    state = CompileState(options=options, source=source, model=source)
    if not is_quantized(source):
        return state
    if options.train == ALL:
        raise untrainable("`--train all`, on a file that is 8-bit already")
    model, count = lift(source)
    if not count:
        log.note("the weights in the file are in 8 bits, its activations are not: all is taken as float32")
        return replace(state, model=model)
    log.note(f"the file is 8-bit already: its {count} grids are kept")
    defaults = {option.name: option.default for option in QUANTIZATION}
    quantized = replace(options, quantize="int8", settings={**defaults, **options.settings})
    return replace(state, options=quantized, model=model)


def read_samples(state: CompileState, log: RoomLog) -> CompileState:
    """Read the calibration samples."""
    return replace(state, samples=samples_of(state.options, state.model, log.note))


def normalise_model(state: CompileState, log: RoomLog) -> CompileState:
    """Bring the model into normal form.

    Raises UnsupportedError for 8-bit layers in a file that works for one sample only.
    """
    shape, single = state.options.shape or state.samples.shape, state.options.batch == 1
    is_open = state.options.max_shape is not None
    known = state.samples.known
    model = normalise(state.model, shape=shape, say=log.note, single=single, open_sizes=is_open, samples=known)
    if model.meta[SINGLE] and state.options.quantize:
        raise UnsupportedError(
            "the file works for one sample at a time, and 8-bit layers are calibrated on several",
            where="`--quantize int8`",
            hint="leave it out",
        )
    log.normalise(model)
    inputs = tuple(str(value.name) for value in model.graph.inputs)
    outputs, single = outputs_of(state.source, model), bool(model.meta[SINGLE])
    return replace(state, model=model, inputs=inputs, outputs=outputs, single=single)


def read_head(state: CompileState, log: RoomLog) -> CompileState:
    """Decide how the output is read that the loss learns from."""
    head = head_of(state.options, state.model, state.outputs, state.samples.known)
    log.head(head)
    if head is not None and state.options.method.loss and state.options.logits is None and len(state.outputs) > 1:
        read = str(state.model.graph.outputs[0].name).removesuffix(batch_first(""))
        log.note(f"the loss reads `{read}` (`--logits {read}`); all {len(state.outputs)} outputs are returned")
    further = further_outputs(state.options.logits, state.model, state.outputs) if state.options.method.loss else ()
    return replace(state, head=head, further=further)


def choose_norms(state: CompileState, log: RoomLog) -> CompileState:
    """Choose the norms to adapt, and insert norms where the export folded them away."""
    model = state.model.clone()
    sites = choose_sites(model, state.options, state.samples, log.note)
    log.norms(model, sites)
    return replace(state, model=model, sites=tuple(sites))


def settle_settings(state: CompileState, log: RoomLog) -> CompileState:
    """Set the defaults that depend on the model, and choose the sites that train."""
    return settled(state, log.note)


def quantize_layers(state: CompileState, log: RoomLog) -> CompileState:
    """Rewrite the frozen layers as 8-bit modules for `--quantize`; otherwise the state stays the same."""
    options = state.options
    if options.quantize is None:
        return state
    model = state.model.clone()
    int8 = quantize(
        model,
        bind_sites(state.sites, model),
        state.samples.known,
        options.target,
        options.settings,
        grids_of(model),
        trains=options.method.by_gradients,
    )
    log.quantize(model, int8)
    return replace(state, model=model, sites=tuple(int8.sites), int8=int8)


def adapt_model(state: CompileState, log: RoomLog) -> CompileState:
    """Rewrite the norms into adaptive ones, and make the trained tensors state."""
    options, model = state.options, state.model.clone()
    weights = own_weights(model) if options.train == ALL else []
    infer = model.clone()
    sites, own_sites = bind_sites(state.sites, model), bind_sites(state.sites, infer)
    name_parameters(infer, own_sites)
    policy, settings, method = options.method.statistics(options.settings), options.settings, options.method
    adaptation = adapt_norms(model, sites, policy, settings, trains=method.trains, batch=options.batch)
    adapted = replace(state, model=model, infer=infer, sites=sites, adaptation=adaptation)
    adaptation = refine(adapted, log.note)
    adaptation = replace(adaptation, parameters=(*adaptation.parameters, *train_weights(model, weights)))
    log.adapt(model, adaptation)
    return replace(adapted, sites=own_sites, adaptation=adaptation)


def compute_constants(state: CompileState, log: RoomLog) -> CompileState:
    """Compute the arrays that the method's graphs need from the source, such as Fisher information."""
    constants = constants_of(state, log.note)
    log.constants(constants)
    usual, check = usual_information(state), check_set(state, log.note)
    if check is None and CHECK_INTERVAL in state.options.settings:
        state = state.with_settings({**state.options.settings, CHECK_INTERVAL: 0})
    return replace(state, constants=constants, usual_information=usual, check=check)


def differentiate_model(state: CompileState, log: RoomLog) -> CompileState:
    """Append the loss and the gradients to a copy of the model."""
    method, model = state.options.method, state.model.clone()
    adaptation = replace(
        state.adaptation,
        parameters=bind_state(state.adaptation.parameters, model),
        tracked=bind_state(state.adaptation.tracked, model),
    )
    named = {str(value.name): value for value in model.graph.outputs}
    weight = next(iter(learned_outputs(state.options.logits).values()), 1.0)
    further = [(named[each.name], each.head, each.weight / weight) for each in state.further]
    joint = differentiate_loss(model, model.graph.outputs[0], method.loss, adaptation.parameters, state.head, further)
    joint = own_outputs(joint) if runs_again(method.program) else joint
    copy_moved_state(model, joint.backward, [tensor.value for tensor in adaptation.tracked if tensor.next is not None])
    log.autodiff(joint)
    return replace(state, model=model, adaptation=adaptation, joint=joint)
