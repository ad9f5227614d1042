"""Open a model file: check it, choose its input and output, bring its opset into the range ttac works in.

A file is hostile until checked.  Weights stay where they are: external data is memory-mapped by whoever reads it, and
the onnx library's checker and version converter only see the graph without them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PureWindowsPath

import google.protobuf.message
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from ttac.errors import UnsupportedError, UsageError
from ttac.passes.graph.layer_names import name_layers, name_nodes
from ttac.passes.load.training_mode import inference_form

Say = Callable[[str], None]

OLDEST, RAISED_TO, NEWEST = 9, 18, 21
READABLE_IR = 10
LIMIT = 2 << 30
SMALL = 1024
"""Initializers up to this many bytes travel with the graph: shapes, axes, scales that inference must see."""

ORIGINAL = "ttac.original"
"""`model.meta` key: the model before its opset was changed, what every later room must agree with."""

EXPORT = 'torch.onnx.export(model, x, "model.onnx", opset_version=18)'
HALF = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16", ir.DataType.DOUBLE: "float64"}


UNREGISTERED = re.compile(r"No Op registered for (\w+)")
"""How onnx's checker names an operator that it does not know."""


def quiet(line: str) -> None:
    """A `say` that says nothing."""


def load(path: str | Path, *, input: str | None = None, output: str | None = None, say: Say = quiet) -> ir.Model:
    """The model of `path`, with one float32 input and one output, in opset 18 to 21.

    Args:
        path: an `.onnx` file, its external data beside it.
        input: name of the input, where the file has several.
        output: name of the output, where the file has several; what no longer leads to it is dropped.
        say: told, a line each, what was changed on the way.

    Raises UsageError for a path or a name that is not there, or an output that has to be chosen; UnsupportedError for
    everything else the file may be: damaged, too new, with operators or inputs that ttac cannot adapt.
    """
    path = Path(path)
    proto = parse(path)
    _shorten_domain(proto)
    _refuse_versions(proto, path)
    _refuse_tensors(proto, path)
    _check(proto, path)
    model = _inlined(_with_data(proto, path.parent), path)
    choose(model, input=input, output=output, say=say)
    _refuse_operators(model)
    _refuse_types(model)
    inference_form(model, say)
    name_nodes(model)
    name_layers(model)
    original = model.clone()
    model = convert(model, path, say)
    original = model.clone() if original.opset_imports[""] > NEWEST else original
    original.ir_version = model.ir_version
    model.meta[ORIGINAL] = original
    return model


def parse(path: Path) -> onnx.ModelProto:
    """The file's protobuf, its external data untouched.

    Raises UsageError if there is no such file, UnsupportedError if it does not hold an ONNX model.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no such file"
        raise UsageError(f"cannot open the model: {kind}", where=f"`{path}`", hint="give the path of an `.onnx` file")
    if path.stat().st_size == 0:
        raise UnsupportedError("the file is empty", where=f"`{path}`", hint=f"export it again: `{EXPORT}`")
    if path.stat().st_size >= LIMIT:
        raise UnsupportedError(
            "larger than 2 GiB, which no protobuf may be",
            where=f"`{path}`",
            hint="keep the weights outside: `torch.onnx.export(..., external_data=True)`",
        )
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        raise UnsupportedError(
            "a PyTorch checkpoint or zip, not ONNX", where=f"`{path}`", hint=f"export it: `{EXPORT}`"
        )
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except google.protobuf.message.DecodeError as error:
        raise UnsupportedError(
            "not an ONNX model, or cut short", where=f"`{path}`", hint="check its size against the file you exported"
        ) from error
    if not proto.graph.node or not proto.graph.output:
        raise UnsupportedError("the file holds no graph", where=f"`{path}`", hint=f"export it again: `{EXPORT}`")
    return proto


def _refuse_versions(proto: onnx.ModelProto, path: Path) -> None:
    if proto.ir_version > onnx.IR_VERSION:
        raise UnsupportedError(
            f"written in IR version {proto.ir_version}; onnx {onnx.__version__} knows up to {onnx.IR_VERSION}",
            where=f"`{path}`",
            hint=f"export an older one, `{EXPORT}`, or `pip install --upgrade onnx`",
        )
    opsets = [entry.version for entry in proto.opset_import if entry.domain == ""]
    if len(set(opsets)) != 1:
        raise UnsupportedError(f"it states {len(opsets)} ONNX opsets, not one", where=f"`{path}`", hint=f"`{EXPORT}`")
    if opsets[0] > onnx.defs.onnx_opset_version():
        raise UnsupportedError(
            f"opset {opsets[0]} is newer than onnx {onnx.__version__}, which knows {onnx.defs.onnx_opset_version()}",
            where=f"`{path}`",
            hint=f"export with an older opset: `{EXPORT}`",
        )
    if opsets[0] < OLDEST:
        raise UnsupportedError(
            f"opset {opsets[0]} is older than {OLDEST}, the oldest that ttac reads",
            where=f"`{path}`",
            hint=f"export again with a newer opset: `{EXPORT}`",
        )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for attribute in (a for node in graph.node for a in node.attribute):
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield from _graphs(inner)


def _nodes(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    nodes = [node for graph in _graphs(proto.graph) for node in graph.node]
    return nodes + [node for function in proto.functions for node in function.node]


def _shorten_domain(proto: onnx.ModelProto) -> None:
    """The default domain has two spellings; onnx's checker knows the empty one only."""
    functions = [entry for function in proto.functions for entry in function.opset_import]
    for owner in [*proto.opset_import, *functions, *_nodes(proto)]:
        if owner.domain == "ai.onnx":
            owner.domain = ""


def _refuse_tensors(proto: onnx.ModelProto, path: Path) -> None:
    """Every tensor must have exactly its bytes, in this file or in a file of this folder."""
    for attribute, owner in [(a, node) for node in _nodes(proto) for a in node.attribute]:
        for tensor in [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise UnsupportedError(
                    "a constant is stored outside the file", where=f"node `{owner.name}`", hint=EXPORT
                )
            _refuse_tensor(tensor, path)
    missing: dict[str, int] = {}
    for graph in _graphs(proto.graph):
        if graph.sparse_initializer:
            raise UnsupportedError("sparse weights are not supported", where=f"`{path}`", hint="store them dense")
        for tensor in graph.initializer:
            missing = _count(missing, _refuse_tensor(tensor, path))
    if missing:
        raise UnsupportedError(
            "files with the model's weights are missing",
            where="\n     ".join(f"`{path.parent / name}` ({count} tensors)" for name, count in missing.items()),
            hint="copy them next to the model, or export one file: `torch.onnx.export(..., external_data=False)`",
        )


def _count(counts: dict[str, int], name: str | None) -> dict[str, int]:
    return counts if name is None else {**counts, name: counts.get(name, 0) + 1}


def _refuse_tensor(tensor: onnx.TensorProto, path: Path) -> str | None:
    """None, or the name of the external file that is missing."""
    where = f"initializer `{tensor.name}` of `{path}`"
    try:
        dtype = ir.DataType(tensor.data_type)
        if dtype == ir.DataType.UNDEFINED or any(size < 0 for size in tensor.dims):
            raise ValueError(f"type {tensor.data_type}, shape {list(tensor.dims)}")
        size = 0 if dtype == ir.DataType.STRING else math.ceil(math.prod(tensor.dims) * dtype.bitwidth / 8)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return _refuse_external(tensor, size, path.parent)
    except ValueError as error:
        raise UnsupportedError(
            f"damaged weights: {error}", where=where, hint="copy or export the model again"
        ) from error
    stated = len(tensor.raw_data) if tensor.HasField("raw_data") else None
    if stated is None and dtype in (ir.DataType.FLOAT, ir.DataType.INT64):
        stated = 4 * len(tensor.float_data) + 8 * len(tensor.int64_data)
    if stated is not None and stated != size:
        problem = f"{stated} bytes where its shape {list(tensor.dims)} needs {size}"
        raise UnsupportedError(f"damaged weights: {problem}", where=where, hint="copy or export the model again")
    return None


def _refuse_external(tensor: onnx.TensorProto, size: int, folder: Path) -> str | None:
    """None, or the missing file's name; raises ValueError for a place or a length that cannot be right."""
    entries = {str(entry.key): str(entry.value) for entry in tensor.external_data}
    location = entries.get("location", "")
    foreign = PureWindowsPath(location)
    if not location or Path(location).is_absolute() or foreign.drive or foreign.root or ".." in foreign.parts:
        raise ValueError(f"its data lies in `{location}`, outside the model's folder")
    root, target = folder.resolve(), (folder / location).resolve()
    if not target.is_relative_to(root):
        raise ValueError(f"`{location}` is a link that leaves the model's folder")
    if not target.is_file():
        return location
    offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
    there = target.stat().st_size
    if offset < 0 or length != size or offset + length > there:
        raise ValueError(f"{size} bytes at offset {offset} of `{location}`, which has {there}")
    return None


def _check(proto: onnx.ModelProto, path: Path) -> None:
    """onnx's own checker, on the graph without its weights."""
    bare = onnx.ModelProto(ir_version=max(proto.ir_version, 4), opset_import=proto.opset_import)
    bare.functions.extend(proto.functions)
    graph, whole = bare.graph, proto.graph
    graph.name = whole.name
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(whole, field))
    for node in graph.node:
        # The checker refuses this operator of opset 18 to 20 as deprecated; engines take it, and `fuse` rewrites it.
        if node.op_type == "GroupNormalization" and not node.domain:
            node.op_type = "InstanceNormalization"
            kept = [attribute for attribute in node.attribute if attribute.name == "epsilon"]
            del node.attribute[:]
            node.attribute.extend(kept)
    inputs = {value.name for value in whole.input}
    for tensor in whole.initializer:
        if len(tensor.raw_data) <= SMALL and not tensor.external_data:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    try:
        onnx.checker.check_model(bare)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        foreign = UNREGISTERED.search(reason)
        if foreign is not None:
            raise _foreign(foreign[1], path) from error
        raise UnsupportedError(f"not a valid ONNX model: {reason}", where=f"`{path}`", hint=EXPORT) from error


def _foreign(op_type: str, path: Path) -> UnsupportedError:
    return UnsupportedError(
        f"not a valid ONNX model: its opset has no `{op_type}`, as exporters name what they could not convert",
        where=f"`{path}`",
        hint="export again without it, or in a newer opset; tf2onnx so leaves what it warned of, as Keras' exact gelu "
        "(`Erfc`: use `gelu(x, approximate=True)`) and grouped convolutions (`StatefulPartitionedCall`: use "
        "`DepthwiseConv2D`)",
    )


def _with_data(proto: onnx.ModelProto, folder: Path) -> ir.Model:
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, folder)
    for value in [value for graph in model.graphs() for value in graph.initializers.values()]:
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.nbytes <= SMALL:
            value.const_value = _in_memory(value.const_value)
    return model


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)


def _inlined(model: ir.Model, path: Path) -> ir.Model:
    """Model-local functions written out, and initializers that are also listed as inputs made constants."""
    try:
        common.InlinePass()(model)
    except Exception as error:
        raise UnsupportedError(f"cannot inline its functions: {error}", where=f"`{path}`", hint=EXPORT) from error
    common.RemoveInitializersFromInputsPass()(model)
    model.ir_version = min(max(model.ir_version, 8), READABLE_IR)
    return model


def choose(model: ir.Model, *, input: str | None, output: str | None, say: Say = quiet) -> None:
    """Keep one output and what leads to it, in place; then one input must be left."""
    outputs = list(model.graph.outputs)
    if output is not None or len(outputs) > 1:
        model.graph.outputs[:] = [_named(outputs, output, "output", "--logits")]
        for dropped in [value for value in outputs if value not in model.graph.outputs]:
            say(f"output `{dropped.name}` dropped")
    common.RemoveUnusedNodesPass()(model)
    inputs = list(model.graph.inputs)
    if input is not None:
        _named(inputs, input, "input", "--input")
    used = [value for value in inputs if value.uses() or value.is_graph_output()]
    needed = [value for value in used if value.name != input]
    if not used or (needed and len(used) > 1):
        count = "no input" if not used else f"{len(used)} inputs"
        raise UnsupportedError(
            f"the output `{model.graph.outputs[0].name}` depends on {count}, ttac adapts models with one",
            where=_listed(used or inputs),
            hint="export a wrapper module that takes the image only and holds the rest as constants",
        )
    if needed and input is not None:
        raise UnsupportedError(
            f"the output `{model.graph.outputs[0].name}` does not depend on input `{input}`",
            where=_listed(used),
            hint=f"leave out `--input`: there is one input it depends on, `{used[0].name}`"
            if len(used) == 1
            else "export a wrapper module that takes the image only",
        )
    for dropped in [value for value in inputs if value not in used]:
        say(f"input `{dropped.name}` dropped: nothing uses it")
    model.graph.inputs[:] = used


def _named(values: Sequence[ir.Value], name: str | None, kind: str, option: str) -> ir.Value:
    for value in values:
        if value.name == name:
            return value
    what = f"there is no {kind} `{name}`" if name else f"the model has {len(values)} {kind}s, choose one"
    raise UsageError(what, where=_listed(values), hint=f"`{option} {values[0].name}`")


def _listed(values: Sequence[ir.Value]) -> str:
    return "\n     ".join(f"`{v.name}` {v.dtype.name.lower() if v.dtype else '?'} {v.shape or '[?]'}" for v in values)


def _refuse_operators(model: ir.Model) -> None:
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    foreign = [node for node in nodes if node.domain != ""]
    if foreign:
        listed = [f"node `{node.name}` ({node.domain}.{node.op_type})" for node in foreign[:8]]
        more = [f"and {len(foreign) - 8} more"] if len(foreign) > 8 else []
        raise UnsupportedError(
            f"operators outside standard ONNX: {', '.join(sorted({f'`{n.domain}.{n.op_type}`' for n in foreign}))}",
            where="\n     ".join([*listed, *more]),
            hint="compile the file as it was exported, before an engine's optimiser fused or quantised it",
        )


def _refuse_types(model: ir.Model) -> None:
    """One float32 tensor in, float32 weights, a float32 output."""
    hint = "export in float32: `model.float()` before `torch.onnx.export`; ttac quantises itself (`--quantize int8`)"
    halves = [v for v in model.graph.initializers.values() if v.const_value is not None and v.const_value.dtype in HALF]
    halves = [v for v in halves if v.const_value is not None and v.const_value.size > 16]
    if halves:
        kind = HALF[halves[0].const_value.dtype]  # type: ignore[union-attr]
        raise UnsupportedError(f"weights in {kind}, ttac adapts float32 models", where=_listed(halves[:4]), hint=hint)
    for kind, value in (("input", model.graph.inputs[0]), ("output", model.graph.outputs[0])):
        if value.dtype in (ir.DataType.FLOAT, None if kind == "output" else ir.DataType.FLOAT):
            continue
        if value.dtype not in HALF:
            hint = f"export a model whose {kind} is a float32 tensor" + (": the logits" if kind == "output" else "")
            maker = value.producer()
            if maker is not None and maker.op_type == "ArgMax":
                hint = "`ArgMax` only tells the class; export the scores that it chooses from, without it"
        type_name = value.dtype.name.lower() if value.dtype else "not a tensor"
        raise UnsupportedError(
            f"the {kind} `{value.name}` is {type_name}, not float32", where=_listed([value]), hint=hint
        )


def convert(model: ir.Model, path: Path, say: Say = quiet) -> ir.Model:
    """The model in an opset from 18 to 21 and an IR version that current engines read.

    Raises UnsupportedError if onnx's version converter cannot bring it there.
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


Weights = dict[str, ir.TensorProtocol]


def without_weights(model: ir.Model, limit: int = SMALL) -> tuple[onnx.ModelProto, Weights]:
    """The graph with initializers above `limit` bytes turned into inputs, and those tensors; `model` stays as it is."""
    bare = model.clone()
    weights = {}
    for name, value in bare.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > limit:
            weights[name] = tensor
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = _in_memory(tensor)
    for name, tensor in weights.items():
        value = bare.graph.initializers.pop(name)
        value.const_value, value.dtype, value.shape = None, tensor.dtype, ir.Shape([int(str(d)) for d in tensor.shape])
        bare.graph.inputs.append(value)
    return ir.to_proto(bare), weights


def with_weights(proto: onnx.ModelProto, weights: Weights, like: ir.Model) -> ir.Model:
    """The reverse of `without_weights`; node metadata and `meta` are taken over from the model it was made of."""
    model = ir.from_proto(proto)
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = weights[str(value.name)]
        model.graph.register_initializer(value)
    metadata = {node.outputs[0].name: node.metadata_props for node in like.graph}
    for node in model.graph:
        node.metadata_props.update(metadata.get(node.outputs[0].name, {}))
    model.meta.update(like.meta)
    model.metadata_props.clear()
    model.metadata_props.update(like.metadata_props)
    return model
