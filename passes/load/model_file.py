"""Open a model file: check it, choose its input and output, convert its opset to one that ttac works in.

Weights stay where they are: readers memory-map external data. The onnx library's checker and version converter only
see the graph without weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.errors import UnsupportedError, UsageError
from ttac.passes.graph.graph_files import is_outside
from ttac.passes.graph.layer_names import PARAMETRIC, name_layers, name_nodes
from ttac.passes.graph.places import node_place
from ttac.passes.graph.rewire import initializer, nodes_before, replace
from ttac.passes.load.checked_file import EXPORT, checked
from ttac.passes.load.engine_operators import DOMAIN
from ttac.passes.load.engine_rules import unfuse
from ttac.passes.load.held_inputs import hold_inputs
from ttac.passes.load.input_axes import AXES, sample_axes
from ttac.passes.load.training_mode import inference_form
from ttac.passes.load.weights_apart import in_memory, with_weights, without_weights
from ttac.passes.load.wide_floats import widen

Say = Callable[[str], None]

RAISED_TO, NEWEST = 18, 21
"""Opsets: an older model is converted to the first, a newer model to the second."""

READABLE_IR = 10
"""Newest IR version that current engines read."""

REFERENCE = "ttac.reference"
"""Key of `model.meta`: the model before its opset conversion, with which every later room must agree."""

INPUTS, OUTPUTS = "ttac.inputs", "ttac.outputs"
"""Keys of `model.meta`: the names of the inputs and of the outputs in the order of the file."""


DTYPES = ("float", "double", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool")
"""Types of an input, in the names of onnx: no gradient reaches an input."""

KEPT = {(DOMAIN, "DynamicQuantizeLSTM"): "LSTM"}
"""Operators of onnxruntime that a bundle keeps unchanged, without a gradient -> standard operators of the same shapes.
"""

CLASSICAL = "ai.onnx.ml"
"""Domain of scalers, trees and other classical models."""

HALF = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16", ir.DataType.DOUBLE: "float64"}
"""Other floating types that exporters write, and their names in messages."""


def quiet(line: str) -> None:
    """Ignore the line: the `say` of a caller who wants no reports."""


def load(
    path: str | Path,
    *,
    input: str | None = None,
    output: str | None = None,
    hold: Mapping[str, Any] | None = None,
    batch_axis: Mapping[str, Any] | None = None,
    say: Say = quiet,
) -> ir.Model:
    """Return the model of `path` in opset 18 to 21; methods distort the first input and learn from the first output.

    Args:
        path: an `.onnx` file, with its external data in the same folder.
        input: name of the input that methods distort, where the file has several; None for the likeliest input.
        output: name of the output to learn from, where the file has several; None for the likeliest output.
        hold: values of inputs that become constants, by name (`hold_inputs`).
        batch_axis: name of an input -> its axis with the samples (`sample_axes`).
        say: receives one line for each change.

    Raises UsageError for a path or a name that does not exist. Raises UnsupportedError for every other fault: damaged,
    too new, with operators or inputs that ttac cannot adapt.
    """
    path = Path(path)
    model = _inlined(_with_data(checked(path), path.parent), path)
    hold_inputs(model, hold or {})
    unfuse(model, say)
    inputs, outputs = (tuple(str(v.name) for v in values) for values in (model.graph.inputs, model.graph.outputs))
    choose(model, input=input, output=output, say=say)
    axes = sample_axes(model.graph.inputs, batch_axis or {})
    _refuse_operators(model)
    _settle_types(model, say)
    inference_form(model, say)
    name_nodes(model)
    name_layers(model)
    reference = model.clone()
    model = convert(model, path, say)
    reference = model.clone() if reference.opset_imports[""] > NEWEST else reference
    reference.ir_version = model.ir_version
    model.meta.update({REFERENCE: reference, OUTPUTS: outputs, INPUTS: inputs, AXES: axes})
    return model


def _with_data(proto: onnx.ModelProto, folder: Path) -> ir.Model:
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, folder)
    for value in [value for graph in model.graphs() for value in graph.initializers.values()]:
        if isinstance(value.const_value, ir.ExternalTensor) and not is_outside(value.const_value):
            value.const_value = in_memory(value.const_value)
    return model


def _inlined(model: ir.Model, path: Path) -> ir.Model:
    """Write model-local functions out, and make initializers that are also listed as inputs constants."""
    try:
        common.InlinePass()(model)
    except Exception as error:
        raise UnsupportedError(f"cannot inline its functions: {error}", where=f"`{path}`", hint=EXPORT) from error
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = min(max(model.ir_version, 8), READABLE_IR)
    return model


def choose(model: ir.Model, *, input: str | None, output: str | None, say: Say = quiet) -> None:
    """Put the output to learn from and the likeliest input first; drop outputs that no bundle can give, in place."""
    outputs = list(model.graph.outputs)
    if output is not None or len(outputs) > 1:
        first = likeliest(outputs) if output is None else _named(outputs, output, "output", "--logits")
        model.graph.outputs[:] = [first, *(value for value in outputs if value is not first)]
    _drop_outputs(model, say)
    common.RemoveUnusedNodesPass()(model)
    choose_input(model, input, say)


def _drop_outputs(model: ir.Model, say: Say) -> None:
    """Drop each further output that is text or needs a foreign operator."""
    for value in list(model.graph.outputs[1:]):
        faults = [f"it needs {node_place(n)}" for n in nodes_before(value) if is_foreign(n)]
        faults += ["it is text"] if value.dtype == ir.DataType.STRING else []
        if faults:
            say(f"output `{value.name}` dropped: {faults[0]}")
            model.graph.outputs.remove(value)


def choose_input(model: ir.Model, input: str | None, say: Say = quiet) -> None:
    """Drop unused inputs, and put the `input`, or the likeliest input, first; in place."""
    inputs = list(model.graph.inputs)
    if input is not None:
        _named(inputs, input, "input", "--input")
    used = [value for value in inputs if value.uses() or value.is_graph_output()]
    reached = inputs_before(model.graph.outputs[0])
    before = [value for value in used if value in reached]
    output = model.graph.outputs[0].name
    if not before:
        hint = "choose another output with `--logits NAME`, or export the model again"
        raise UnsupportedError(f"the output `{output}` depends on no input", where=_listed(inputs), hint=hint)
    main = next((value for value in before if value.name == input), None)
    if main is None and input is not None:
        names = ", ".join(f"`{value.name}`" for value in before)
        raise UnsupportedError(
            f"the output `{output}` does not depend on input `{input}`",
            where=_listed(used),
            hint=f"leave out `--input`, or name an input that it depends on: {names}",
        )
    for dropped in [value for value in inputs if value not in used]:
        say(f"input `{dropped.name}` dropped: nothing uses it")
    first = main or likeliest_input(before)
    model.graph.inputs[:] = [first, *(value for value in used if value is not first)]


def likeliest_input(inputs: Sequence[ir.Value]) -> ir.Value:
    """Return the input that takes the samples: the first floats of two or more axes, else the numbers of most axes."""
    floats = [value for value in inputs if value.dtype in (None, ir.DataType.FLOAT, *HALF)]
    several = [value for value in floats if value.shape is None or len(value.shape) > 1]
    return several[0] if several else max(inputs, key=lambda value: len(value.shape or ()))


def likeliest(outputs: Sequence[ir.Value]) -> ir.Value:
    """Return the output that predictions likely come from: a float that ends in a Softmax or Sigmoid, or any float."""
    floats = [value for value in outputs if value.dtype in (None, ir.DataType.FLOAT, *HALF)] or list(outputs)
    makers = {value: value.producer() for value in floats}
    ending = [v for v, node in makers.items() if node and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid")]
    return (ending or floats)[0]


def inputs_before(output: ir.Value) -> set[ir.Value]:
    """Return the graph inputs that lead to `output`."""
    read = [value for node in nodes_before(output) for value in node.inputs]
    return {value for value in (output, *read) if value is not None and value.is_graph_input()}


def _named(values: Sequence[ir.Value], name: str | None, kind: str, option: str) -> ir.Value:
    for value in values:
        if value.name == name:
            return value
    raise UsageError(f"there is no {kind} `{name}`", where=_listed(values), hint=f"`{option} {values[0].name}`")


def _listed(values: Sequence[ir.Value]) -> str:
    return "\n     ".join(f"`{v.name}` {v.dtype.name.lower() if v.dtype else '?'} {v.shape or '[?]'}" for v in values)


def is_foreign(node: ir.Node) -> bool:
    """Whether ttac cannot keep a node, because its operator is not standard ONNX."""
    return node.domain != "" and (node.domain, node.op_type) not in KEPT


def _refuse_operators(model: ir.Model) -> None:
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    foreign = [node for node in nodes if is_foreign(node)]
    if foreign:
        listed = [node_place(node) for node in foreign[:8]]
        more = [f"and {len(foreign) - 8} more"] if len(foreign) > 8 else []
        hint = "compile the file as it was exported, before an engine's optimiser fused or quantised it"
        if all(node.domain == CLASSICAL for node in foreign):
            hint = "these operators are not those of a network: export the network alone and prepare its input outside"
        raise UnsupportedError(
            f"operators outside standard ONNX: {', '.join(sorted({f'`{n.domain}.{n.op_type}`' for n in foreign}))}",
            where="\n     ".join([*listed, *more]),
            hint=hint,
        )


def fold_casts(model: ir.Model) -> None:
    """Turn weights of another floating type, stored behind a Cast to float32, into float32 weights; in place."""
    for node in [node for node in model.graph if node.op_type == "Cast"]:
        x, to = node.inputs[0], node.attributes.get_int("to", 0)
        if x is None or x.const_value is None or x.const_value.dtype not in HALF or to != ir.DataType.FLOAT:
            continue
        name = str(node.outputs[0].name)
        if len(x.uses()) == 1 and not x.is_graph_output():  # the weight keeps its name, which names its layer
            name = str(x.name)
            model.graph.initializers.pop(name)
        node.outputs[0].name = f"{name}.cast"
        replace(model.graph, node, initializer(model.graph, name, x.const_value.numpy().astype(np.float32)))


def _settle_types(model: ir.Model, say: Say) -> None:
    """Make weights and values float32, in place; refuse a model where other types are left."""
    fold_casts(model)
    widen(model, say)
    _refuse_types(model)


def _refuse_types(model: ir.Model) -> None:
    """Refuse a model without finite float32 weights, inputs of numbers and an output of numbers."""
    _refuse_no_numbers(model)
    _refuse_damaged_norms(model)
    hint = "export in float32: `model.float()` before `torch.onnx.export`; ttac quantises itself (`--quantize int8`)"
    read = {value for node in nodes_before(model.graph.outputs[0]) for value in node.inputs if value is not None}
    narrow = [v for v in read if v.const_value is not None and v.const_value.dtype in HALF and v.const_value.size > 16]
    if narrow:
        kind = HALF[narrow[0].const_value.dtype]  # type: ignore[union-attr]
        raise UnsupportedError(f"weights in {kind}, ttac adapts float32 models", where=_listed(narrow[:4]), hint=hint)
    for x in model.graph.inputs:
        if x.dtype is None or x.dtype.name.lower() not in DTYPES:
            kind = x.dtype.name.lower() if x.dtype else "not a tensor"
            hint = "export a model whose input is a tensor of numbers"
            raise UnsupportedError(f"the input `{x.name}` is {kind}, not numbers", where=_listed([x]), hint=hint)
    y = model.graph.outputs[0]
    if y.dtype is not None and y.dtype.name.lower() not in DTYPES:
        raise UnsupportedError(
            f"the output `{y.name}` is {y.dtype.name.lower()}, not numbers",
            where=_listed([y]),
            hint="choose an output of numbers with `--logits NAME`, or export the logits",
        )


def _refuse_no_numbers(model: ir.Model) -> None:
    """Refuse weights with NaN, and layers with infinite weights; a mask of -infinity is fine elsewhere.

    Large weights beside the file stay unread.
    """
    for name, value in model.graph.initializers.items():
        tensor, readers = value.const_value, value.uses()
        if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.dtype != ir.DataType.FLOAT or not readers:
            continue
        if is_finite(tensor.numpy()):
            continue
        layers = [use.node for use in readers if use.node.op_type in PARAMETRIC]
        if np.isnan(tensor.numpy()).any() or layers:
            node = (layers or [use.node for use in readers])[0]
            raise UnsupportedError(
                f"the weights `{name}` hold numbers that are infinite or NaN",
                where=node_place(node),
                hint="the training of the model diverged, or the file is damaged: export the weights again",
            )


def _refuse_damaged_norms(model: ir.Model) -> None:
    """Refuse batch norms whose parameters differ in length, or whose variances are negative."""
    for node in (node for node in model.graph if node.op_type == "BatchNormalization"):
        tensors = [value.const_value for value in node.inputs[1:5] if value is not None]
        if len(tensors) < 4 or any(tensor is None or isinstance(tensor, ir.ExternalTensor) for tensor in tensors):
            continue
        lengths = [tensor.size for tensor in tensors if tensor is not None]
        variance = tensors[3]
        assert variance is not None
        problem = ""
        if len(set(lengths)) > 1:
            problem = f"scale, bias, mean and variance have {', '.join(map(str, lengths))} values"
        elif (variance.numpy() + node.attributes.get_float("epsilon", 1e-5) <= 0).any():
            problem = "the variances hold negative numbers"
        if problem:
            hint = "the file is damaged: export the model again"
            raise UnsupportedError(problem, where=node_place(node), hint=hint)


def is_finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite, without a copy as large as the array where they are."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum(dtype=np.float64)))


def convert(model: ir.Model, path: Path, say: Say = quiet) -> ir.Model:
    """Return the model in an opset from 18 to 21 and an IR version that current engines read.

    Raises UnsupportedError if onnx's version converter cannot convert it.
    """
    opset = model.opset_imports[""]
    wanted = min(max(opset, RAISED_TO), NEWEST)
    if wanted != opset:
        bare, weights = without_weights(model)
        try:
            converted = onnx.version_converter.convert_version(bare, wanted)
            onnx.checker.check_model(converted)
        except Exception as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UnsupportedError(
                f"opset {opset} cannot be converted to {wanted}: {reason}", where=f"`{path}`", hint=f"`{EXPORT}`"
            ) from error
        model = with_weights(converted, weights, like=model)
        say(f"opset {opset} converted to {wanted}")
    model.ir_version = min(model.ir_version, READABLE_IR)
    return model
