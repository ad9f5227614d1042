"""Parse a model file, hostile until checked, and refuse every fault that shows before the model runs."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PureWindowsPath

import google.protobuf.message
import onnx
import onnx_ir as ir
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from ttac.errors import UnsupportedError, UsageError
from ttac.passes.load.limits import refuse_unbounded
from ttac.passes.load.sparse_weights import make_dense
from ttac.passes.load.weights_apart import SMALL_BYTES

OLDEST = 7
"""Oldest opset that ttac reads."""

LIMIT = 2 << 30
"""Size in bytes that no protobuf may reach."""
EXPORT = 'torch.onnx.export(model, x, "model.onnx", opset_version=18)'
"""The command that the hints of this room give."""
UNREGISTERED = re.compile(r"No Op registered for (\w+)")
"""Form in which onnx's checker names an operator that it does not know."""


def checked(path: Path) -> onnx.ModelProto:
    """Return the file's protobuf, its external data untouched, with every tensor and operator checked.

    Sparse weights are dense in the result.

    Raises UsageError if there is no such file. Raises UnsupportedError if the file is damaged, too new, or no ONNX
    model.
    """
    proto = parse(path)
    refuse_unbounded(proto, path)
    try:
        _shorten_domain(proto)
        _refuse_names(proto, path)
        _refuse_bytes(proto, path)
        _refuse_versions(proto, path)
        make_dense(_graphs(proto.graph), path)
        _refuse_tensors(proto, path)
        _check(proto, path)
    except UnicodeDecodeError as error:
        hint = "export the model again; the file is damaged"
        raise UnsupportedError(
            f"a name in the file is no text: {error.object!r:.80}", where=f"`{path}`", hint=hint
        ) from error
    return proto


def parse(path: Path) -> onnx.ModelProto:
    """Return the file's protobuf, its external data untouched.

    Raises UsageError if there is no such file, UnsupportedError if the file does not contain an ONNX model.
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
        raise UnsupportedError(f"{_archive_kind(path)}, not ONNX", where=f"`{path}`", hint=f"export it: `{EXPORT}`")
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


def _archive_kind(path: Path) -> str:
    """Return the kind of a zip file: arrays of NumPy, or a checkpoint of PyTorch."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        names = []
    if names and all(name.endswith(".npy") for name in names):
        return "arrays of NumPy (`.npz`)"
    return "a PyTorch checkpoint or zip"


def _refuse_names(proto: onnx.ModelProto, path: Path) -> None:
    """Raise UnsupportedError for an input or output whose name holds control characters: a bundle keeps these names."""
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name and not value.name.isprintable():
            problem = f"the name of the input or output `{value.name}` holds control characters"
            raise UnsupportedError(problem, where=f"`{path}`", hint="rename it, and export the model again")


def _refuse_bytes(proto: onnx.ModelProto, path: Path) -> None:
    """Raise UnsupportedError for a name, note or entry of metadata that is no text: a later room could not write it."""
    for text in _texts(proto):
        if not isinstance(text, str):
            hint = "export the model again; the file is damaged"
            raise UnsupportedError(f"a name in the file is no text: {text!r:.80}", where=f"`{path}`", hint=hint)


def _texts(message: Message) -> Iterator[str | bytes]:
    """Yield every text field of the message and of the messages in it; protobuf gives bytes where one is no UTF-8."""
    texts, parts = _fields(message.DESCRIPTOR)
    for name in texts:
        found = getattr(message, name)
        yield from [found] if isinstance(found, str | bytes) else found
    for name in parts:
        found = getattr(message, name)
        if not isinstance(found, Message):
            for part in found:
                yield from _texts(part)
        elif message.HasField(name):
            yield from _texts(found)


@cache
def _fields(kind: Descriptor) -> tuple[list[str], list[str]]:
    """Return the names of the fields with text, and of those with messages; the weights are in neither."""
    texts = [field.name for field in kind.fields if field.type == FieldDescriptor.TYPE_STRING]
    return texts, [field.name for field in kind.fields if field.type == FieldDescriptor.TYPE_MESSAGE]


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
    """Write the default domain as the empty string: onnx's checker does not know its second spelling, `ai.onnx`."""
    functions = [entry for function in proto.functions for entry in function.opset_import]
    for owner in [*proto.opset_import, *functions, *_nodes(proto)]:
        if owner.domain == "ai.onnx":
            owner.domain = ""


def _refuse_tensors(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse a tensor that has not exactly its bytes, in this file or in a file of its folder."""
    for attribute, owner in [(a, node) for node in _nodes(proto) for a in node.attribute]:
        for tensor in [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise UnsupportedError(
                    "a constant is stored outside the file", where=f"node `{owner.name}`", hint=EXPORT
                )
            _refuse_tensor(tensor, path)
    missing: dict[str, int] = {}
    for graph in _graphs(proto.graph):
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
    """Return None, or the name of the external file that is missing."""
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
    """Return None, or the name of the missing file. Raises ValueError for an impossible place or length."""
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
    available = target.stat().st_size
    if offset < 0 or length != size or offset + length > available:
        raise ValueError(f"{size} bytes at offset {offset} of `{location}`, which has {available}")
    return None


def _check(proto: onnx.ModelProto, path: Path) -> None:
    """Run onnx's own checker on the graph without its weights."""
    bare = onnx.ModelProto(ir_version=max(proto.ir_version, 4), opset_import=proto.opset_import)
    bare.functions.extend(proto.functions)
    graph, whole = bare.graph, proto.graph
    graph.name = whole.name
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(whole, field))
    for node in graph.node:
        # The checker refuses this operator of opset 18 to 20 as deprecated. Engines accept it.
        if node.op_type == "GroupNormalization" and not node.domain:
            node.op_type = "InstanceNormalization"
            kept = [attribute for attribute in node.attribute if attribute.name == "epsilon"]
            del node.attribute[:]
            node.attribute.extend(kept)
    inputs = {value.name for value in whole.input}
    for tensor in whole.initializer:
        if len(tensor.raw_data) <= SMALL_BYTES and not tensor.external_data:
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
        f"not a valid ONNX model: its opset has no `{op_type}`; exporters name operators so that they cannot convert",
        where=f"`{path}`",
        hint="export again without this operator, or in a newer opset; tf2onnx leaves such names after a warning: for "
        "Keras' exact gelu (`Erfc`: use `gelu(x, approximate=True)`) and for grouped convolutions "
        "(`StatefulPartitionedCall`: use `DepthwiseConv2D`)",
    )
