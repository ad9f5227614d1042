"""Bring a loaded model into the one form that all later rooms expect.

The result is in opset 18 to 21. Its first input has an axis of size N, its first output begins with N. Every value
has a dtype and a shape, whose only symbol is the batch N. It has no Constant, Identity or Dropout nodes. `fuse_norms`
has rewritten its norms. Every node has a unique name and layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

import ttac.passes.normalise.branches  # (registers the rewrite of If)
import ttac.passes.normalise.loops  # noqa: F401  (registers the rewrites of Loop and Scan)
from ttac.errors import UnsupportedError
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.layer_names import name_layers, name_nodes, unique_layers
from ttac.passes.graph.match import only_reader, with_constant
from ttac.passes.graph.places import node_place
from ttac.passes.graph.rewire import replace
from ttac.passes.graph.sample_set import SampleSet
from ttac.passes.graph.shapes import BATCH, dims
from ttac.passes.load.input_axes import AXES, Axes, axes_of
from ttac.passes.load.model_file import REFERENCE, Say, quiet
from ttac.passes.normalise.batch_walk import HINT, ROOM, fixed_batch, is_fixed
from ttac.passes.normalise.bound_inputs import Shape, bind, forget_shapes
from ttac.passes.normalise.folded_affines import fuse_affines
from ttac.passes.normalise.fuse_norms import fuse_norms
from ttac.passes.normalise.operand_shapes import refuse_wrong_operands
from ttac.passes.normalise.same_results import refuse_difference
from ttac.passes.normalise.simplify import simplify, worthwhile
from ttac.passes.normalise.single_sample import SINGLE, type_for_one
from ttac.passes.normalise.traced_batch import free_batch, loses_batch

HEAD = "ttac.head"
"""Model metadata: the kind of the output, one of `softmax`, `log_softmax`, `sigmoid`, `logits`."""

HEADS = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid"}
"""Kind of the output by the operator that produces it."""
Simplifier = Callable[[ir.Model, Say], ir.Model]


def normalise(
    model: ir.Model,
    *,
    shape: Shape | None = None,
    say: Say = quiet,
    simplifier: Simplifier | None = simplify,
    single: bool = False,
    open_sizes: bool = False,
    samples: SampleSet | None = None,
) -> ir.Model:
    """Return the normal form of a loaded model, after a check that it computes the same on 1, 2 and 3 samples.

    An output that has no normal form is dropped, unless it is the first.

    Args:
        model: from `load`; it stays unchanged.
        shape: of one sample, (3, 224, 224), where the file leaves a dimension open; for several inputs, by names.
        say: receives one line for each change; simplifier: None leaves out the simplification.
        single: the model is to run on one sample at a time; the file may fix the batch at 1 then (mark `SINGLE`).
        open_sizes: tables that follow from the size of the input stay nodes.
        samples: calibration samples for the check, for inputs of integers.

    Raises UsageError if `shape` contradicts the file, UnsupportedError if there is no normal form.
    """
    choices: dict[str, Any] = {"shape": shape, "simplifier": simplifier, "open_sizes": open_sizes, "samples": samples}
    try:
        return _normalised(model, say=say, **choices)
    except UnsupportedError as error:
        if is_fixed(error) and (alone := _for_one_sample(model, error, say, single, choices)) is not None:
            return alone
        if len(model.graph.outputs) == 1:
            raise
    first, *others = (str(value.name) for value in model.graph.outputs)
    _normalised(restricted(model, [first]), say=quiet, **choices)
    faults = {name: _fault(restricted(model, [first, name]), choices) for name in others}
    for name, fault in faults.items():
        if fault:
            say(f"output `{name}` dropped: {fault}")
    kept = [first, *(name for name in others if not faults[name])]
    return _normalised(restricted(model, kept), say=say, **choices)


def _for_one_sample(
    model: ir.Model, error: UnsupportedError, say: Say, single: bool, choices: Mapping[str, Any]
) -> ir.Model | None:
    """Return the normal form for one sample at a time, if `single`; None if the model has none.

    Raises the `error` with the hint `--batch 1` if there is one and the user plans for more samples.
    """
    try:
        alone = _normalised(model, say=say if single else quiet, single=True, **choices)
    except UnsupportedError:
        return None
    if not single:
        raise UnsupportedError(
            error.problem, where=error.where, hint=f"the file works for one sample at a time, `--batch 1`; or {HINT}"
        )
    say("the batch is fixed at 1 in the file: the bundle takes one sample at a time")
    return alone


def _fault(model: ir.Model, choices: Mapping[str, Any]) -> str:
    """Return the reason why `model` has no normal form, empty if it has one."""
    try:
        _normalised(model, say=quiet, **choices)
    except UnsupportedError as error:
        return ", ".join(text for text in (error.problem, *(error.where or "").splitlines()[:1]) if text)
    return ""


def restricted(model: ir.Model, outputs: Sequence[str]) -> ir.Model:
    """Return a copy of `model` with only these outputs, in this order, and the nodes that lead to them."""
    copy = model.clone()
    named = {str(value.name): value for value in copy.graph.outputs}
    copy.graph.outputs[:] = [named[name] for name in outputs]
    common.RemoveUnusedNodesPass()(copy)
    copy.meta.update({REFERENCE: model.meta.get(REFERENCE) or model.clone(), AXES: axes_of(model)})
    return copy


def _normalised(
    model: ir.Model,
    *,
    shape: Shape | None,
    say: Say,
    simplifier: Simplifier | None,
    single: bool = False,
    open_sizes: bool = False,
    samples: SampleSet | None = None,
) -> ir.Model:
    reference, axes = model.meta.get(REFERENCE) or model.clone(), axes_of(model)
    model = model.clone()
    traced = bind(model, shape, axes)
    resolve_casts(model)
    tidy(model)
    model, rewritten, traced = (type_for_one(model, axes), [], 1) if single else _freed(model, traced, axes, open_sizes)
    tidy(model)
    if simplifier and not open_sizes and worthwhile(model):
        model = _simplified(model, simplifier, say, axes if single else None)
    _refuse_batchless(model, traced)
    refuse_wrong_operands(model)
    join_operators(model)
    name_layers(model)
    fuse_norms(model)
    refuse_difference(reference, model, traced, rewritten, most=1 if single else 3, samples=samples)
    if rewritten:
        say(f"the batch, {traced} in the file, is free now: {len(rewritten)} nodes rewritten")
    finish(model)
    model.meta.pop(REFERENCE, None)
    model.meta[SINGLE] = single
    return model


def _simplified(model: ir.Model, simplifier: Simplifier, say: Say, single: Axes | None) -> ir.Model:
    """Simplify; `single` has the axes of the inputs if the model takes one sample at a time."""
    fuse_affines(model)
    forget_shapes(model)
    model = simplifier(model, say)
    tidy(model)
    if single is not None:
        return type_for_one(model, single)
    free_batch(model, None)
    return model


def resolve_casts(model: ir.Model) -> None:
    """Replace CastLike, whose constants cannot be folded, by Cast or by its input, in place."""
    casts = [node for node in model.graph if node.op_type == "CastLike"]
    if not casts:
        return
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    for node in casts:
        x, like = node.inputs
        if x is None or like is None or like.dtype is None:
            continue
        if x.dtype == like.dtype:
            replace(model.graph, node, x)
        else:
            cast = ir.node("Cast", [x], {"to": int(like.dtype)}, name=node.name)
            cast.outputs[0].name = node.outputs[0].name
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [cast], node.outputs, cast.outputs)
    forget_shapes(model)


def tidy(model: ir.Model) -> None:
    """Turn constants into initializers; remove Identity nodes, unused nodes and biases of zeros; in place."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in [node for node in model.graph if node.op_type == "Identity" and node.inputs[0] is not None]:
        replace(model.graph, node, node.inputs[0])
    for node in model.graph:
        bias = node.inputs[2] if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 2 else None
        if bias is not None and bias.const_value is not None and not bias.const_value.numpy().any():
            node.resize_inputs(2)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)


def join_operators(model: ir.Model) -> None:
    """Remove Reshapes to the same shape, and write linear layers as one operator.

    tf2onnx leaves such Reshapes where axes of size 1 were transposed.
    """
    for node in [node for node in model.graph if node.op_type == "Reshape"]:
        x, y = node.inputs[0], node.outputs[0]
        if x is not None and x.shape is not None and y.shape is not None and dims(x) == dims(y):
            replace(model.graph, node, x)
    join_linear(model)
    common.RemoveUnusedNodesPass()(model)


def join_linear(model: ir.Model) -> None:
    """Write a linear layer on rows, MatMul and Add of constants, as one Gemm, as engines do."""
    for node in [node for node in model.graph if node.op_type == "MatMul"]:
        parts, total = with_constant(node), only_reader(node.outputs[0], "Add")
        bias = with_constant(total)
        if parts is None or total is None or bias is None or node.inputs[0] is not parts[0]:
            continue
        x, kernel = parts
        if x.shape is None or len(x.shape) != 2 or kernel.ndim != 2 or bias[1].size != kernel.shape[1]:
            continue
        shift = next(value for value in total.inputs if value is not node.outputs[0])
        if bias[1].ndim != 1:
            shift = Builder(model.graph, ROOM, model.opset_imports[""]).constant(bias[1].reshape(-1))
        y, name = total.outputs[0], node.name
        joined = ir.node("Gemm", [x, node.inputs[1], shift], name=name, metadata_props=dict(node.metadata_props))
        ir.convenience.replace_nodes_and_values(model.graph, total, [total, node], [joined], [y], [joined.outputs[0]])


def _freed(model: ir.Model, traced: int | None, axes: Axes, open_sizes: bool) -> tuple[ir.Model, list[str], int | None]:
    """Return the model with a free batch, the names of the rewritten nodes, and the batch of the trace.

    A file that declares a free batch may still contain numbers, from a trace with one sample.
    """
    if traced is not None:
        return model, free_batch(model, traced, axes, open_sizes=open_sizes), traced
    attempt = model.clone()
    try:
        free_batch(attempt, None, axes, open_sizes=open_sizes)
        _refuse_batchless(attempt, None)
        return attempt, [], None
    except UnsupportedError as error:
        try:
            return model, free_batch(model, 1, axes, open_sizes=open_sizes), 1
        except UnsupportedError:
            raise error from None


def _refuse_batchless(model: ir.Model, traced: int | None) -> None:
    y = model.graph.outputs[0]
    if BATCH in [size.value for size in y.shape or () if isinstance(size, ir.SymbolicDim)]:
        return
    node = loses_batch(model) or y.producer()
    culprit = node_place(node) if node else f"output `{y.name}`"
    raise fixed_batch(culprit, f"the output `{y.name}` is {y.shape}, without a row for each sample", traced)


def begin_with_batch(model: ir.Model) -> None:
    """Put a transposed copy of the first output [T, N, C] in front of the outputs, [N, T, C]; in place."""
    y = model.graph.outputs[0]
    axis = dims(y).index(BATCH)
    if axis == 0:
        return
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    order = [axis, *(other for other in range(len(dims(y))) if other != axis)]
    maker = y.producer()
    with op.at(maker.metadata_props.get(LAYER, "") if maker else ""):
        first = op.Transpose(y, perm=order, name=batch_first(str(y.name)))
    model.graph.outputs.insert(0, first)


def batch_first(name: str) -> str:
    """Return the name of the transposed copy of output `name`."""
    return f"{name}.batch_first"


def finish(model: ir.Model) -> None:
    """Give nodes unique names and layers, and note the kind of the output; in place."""
    begin_with_batch(model)
    unique_layers(model)
    name_nodes(model)
    producer = model.graph.outputs[0].producer()
    model.metadata_props[HEAD] = HEADS.get(producer.op_type, "logits") if producer else "logits"
