"""Write graphs without weights: large initializers become external data that points into one safetensors file."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from safetensors.numpy import save_file

from ttac.passes.graph.shorten import SHARED_BYTES, constant_vectors, fill, is_8_bit, shorten

WEIGHTS = "weights.safetensors"
INLINE_BYTES = 1024
INLINE_INT64_BYTES = 64 * 1024
"""Bytes up to which int64 stays in the graph: engines read sizes and axes while they load it."""


class WeightPool:
    """Constant tensors by name, each content once, whichever graphs read it."""

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self._by_content: dict[str, str] = {}

    def add(self, name: str, array: np.ndarray) -> str:
        """Keep `array` and return the name it is stored under; equal contents share one."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        digest = _digest(array)
        if digest not in self._by_content:
            stored = name if name not in self.tensors else f"{name}#{digest[:8]}"
            self._by_content[digest] = stored
            self.tensors[stored] = array
        return self._by_content[digest]

    def feed(self, name: str, array: np.ndarray) -> None:
        """Keep `array` under exactly this name, for the runtime to feed; graphs that hold it too share it."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        self.tensors[name] = array
        self._by_content.setdefault(_digest(array), name)

    def write(self, folder: Path) -> Mapping[str, tuple[int, int]]:
        """Write the file into `folder`; returns name -> (offset in the file, length), in bytes."""
        path = folder / WEIGHTS
        save_file(self.tensors, path)
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        return {
            name: (8 + length + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
            for name, entry in header.items()
            if name != "__metadata__"
        }


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()


def write_graphs(
    folder: Path,
    models: Mapping[str, ir.Model],
    fed: Mapping[str, np.ndarray] | None = None,
    kept: Collection[str] = (),
) -> None:
    """Write `<name>.onnx` for every model, and the weights file they share.

    Args:
        fed: weights that are graph inputs: stored under exactly these names for the runtime to feed.
        kept: constants that stay as they are, whatever they hold, because somebody looks for them by name.
    """
    pool = WeightPool()
    for name, array in (fed or {}).items():
        pool.feed(name, array)
    repeated = _repeated(models)
    filled = {graph: constant_vectors(model, kept) for graph, model in models.items()}
    stored = {
        (graph, name): pool.add(name, value.const_value.numpy())
        for graph, model in models.items()
        for name, value in sorted(model.graph.initializers.items())
        if value.const_value is not None and name not in filled[graph]
        if is_outside(value.const_value) or name in repeated
    }
    places = pool.write(folder)
    for graph, model in models.items():
        held = _point_into_file(model, {n: places[s] for (g, n), s in stored.items() if g == graph})
        proto = _in_order(ir.to_proto(model))
        if is_8_bit(model.graph):
            fill(proto, filled[graph])
            shorten(proto, kept)
        onnx.save_model(proto, str(folder / f"{graph}.onnx"))
        for name, tensor in held.items():
            model.graph.initializers[name].const_value = tensor


def is_outside(tensor: ir.TensorProtocol) -> bool:
    """Whether a constant is written to the weights file instead of into the graph."""
    return tensor.nbytes > (INLINE_INT64_BYTES if tensor.dtype == ir.DataType.INT64 else INLINE_BYTES)


def _repeated(models: Mapping[str, ir.Model]) -> set[str]:
    """The names of constants that 8-bit graphs hold more than once, of one content and large enough to be shared."""
    found: dict[tuple[str, str], int] = {}
    for model in (model for model in models.values() if is_8_bit(model.graph)):
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and tensor.nbytes > SHARED_BYTES and tensor.dtype != ir.DataType.INT64:
                key = name, _digest(tensor.numpy())
                found[key] = found.get(key, 0) + 1
    return {name for (name, _), count in found.items() if count > 1}


def _in_order(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph gives the same bytes: cut out of a larger one, it lists what it holds in any order."""
    for entries in (proto.graph.initializer, proto.graph.value_info):
        entries.sort(key=lambda entry: str(entry.name))
    return proto


def _point_into_file(model: ir.Model, places: Mapping[str, tuple[int, int]]) -> dict[str, ir.TensorProtocol]:
    """Make the named initializers external data; returns the tensors they held."""
    held = {}
    for name, (offset, length) in places.items():
        value = model.graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        held[name] = tensor
        shape = ir.Shape([int(str(size)) for size in tensor.shape])
        value.const_value = ir.ExternalTensor(WEIGHTS, offset, length, tensor.dtype, shape=shape, name=name)
    return held
