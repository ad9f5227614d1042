"""Write graphs and their weights: large initializers become external data in one shared safetensors file."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from safetensors.numpy import load_file, save_file

from ttac.passes.graph.shorten import SHARED_BYTES, constant_vectors, fill, is_8_bit, shorten

WEIGHTS = "weights.safetensors"
"""Name of the weights file of a bundle."""

INLINE_BYTES = 1024
"""Largest constant, in bytes, that a graph file contains; larger ones go to the weights file."""

INLINE_INT64_BYTES = 64 * 1024
"""Largest int64 constant, in bytes, that a graph file contains: engines read sizes and axes while they load it."""


class WeightPool:
    """Constant tensors by name; graphs with equal tensors share one copy."""

    def __init__(self) -> None:
        self.tensors: dict[str, np.ndarray] = {}
        self._by_content: dict[str, str] = {}

    def add(self, name: str, array: np.ndarray) -> str:
        """Store `array` and return its name in the file; arrays of equal contents share one name."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        digest = _digest(array)
        if digest not in self._by_content:
            stored = name if name not in self.tensors else f"{name}#{digest[:8]}"
            self._by_content[digest] = stored
            self.tensors[stored] = array
        return self._by_content[digest]

    def add_fed_weight(self, name: str, array: np.ndarray) -> None:
        """Store a fed weight under exactly this name, by which the runtime finds the tensor.

        Graphs that contain the same array share it.
        """
        array = np.ascontiguousarray(array).reshape(array.shape)
        self.tensors[name] = array
        self._by_content.setdefault(_digest(array), name)

    def write(self, folder: Path) -> Mapping[str, tuple[int, int]]:
        """Write the file into `folder`; return name -> (offset in the file, length), in bytes."""
        save_file(self.tensors, folder / WEIGHTS)
        return places_in(folder / WEIGHTS)


def places_in(path: Path) -> dict[str, tuple[int, int]]:
    """Tensor -> (offset in the safetensors file, length), in bytes."""
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
    fed_weights: Mapping[str, np.ndarray] | None = None,
    kept: Collection[str] = (),
) -> None:
    """Write `<name>.onnx` for every model, and the weights file that the graphs share.

    Args:
        fed_weights: weights that are graph inputs, stored under exactly these names.
        kept: names of constants to write unchanged, whatever their contents, because a reader looks for these names.
    """
    pool = WeightPool()
    for name, array in (fed_weights or {}).items():
        pool.add_fed_weight(name, array)
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
        outside = {name: places[key] for (owner, name), key in stored.items() if owner == graph}
        _save(folder / f"{graph}.onnx", model, outside, filled[graph], kept)


def write_more_graphs(folder: Path, models: Mapping[str, ir.Model], kept: Collection[str] = ()) -> None:
    """Write `<name>.onnx` beside graphs that are there, and leave the weights file unchanged.

    Large constants point into the weights file where it holds their content; others are written into the graph.

    Args:
        kept: as in `write_graphs`.
    """
    places, arrays = places_in(folder / WEIGHTS), load_file(folder / WEIGHTS)
    stored = {_digest(array): places[name] for name, array in arrays.items()}
    for graph, model in models.items():
        filled = constant_vectors(model, kept)
        held = {n: v.const_value for n, v in model.graph.initializers.items() if v.const_value is not None}
        is_large = _is_shared if is_8_bit(model.graph) else is_outside
        digests = {name: _digest(tensor.numpy()) for name, tensor in held.items() if is_large(tensor)}
        outside = {n: stored[digest] for n, digest in digests.items() if digest in stored and n not in filled}
        _save(folder / f"{graph}.onnx", model, outside, filled, kept)


def _save(
    path: Path,
    model: ir.Model,
    outside: Mapping[str, tuple[int, int]],
    filled: Collection[str],
    kept: Collection[str],
) -> None:
    """Write `model`, whose constants `outside` point into the weights file, and leave the model unchanged."""
    tensors = _point_into_file(model, outside)
    proto = _in_order(ir.to_proto(model))
    if is_8_bit(model.graph):
        fill(proto, filled)
        shorten(proto, kept)
    onnx.save_model(proto, str(path))
    for name, tensor in tensors.items():
        model.graph.initializers[name].const_value = tensor


def is_outside(tensor: ir.TensorProtocol) -> bool:
    """Return whether a constant goes to the weights file instead of into the graph."""
    return tensor.nbytes > (INLINE_INT64_BYTES if tensor.dtype == ir.DataType.INT64 else INLINE_BYTES)


def _is_shared(tensor: ir.TensorProtocol) -> bool:
    """Return whether 8-bit graphs keep one copy of a constant that several of them contain."""
    return tensor.nbytes > SHARED_BYTES and tensor.dtype != ir.DataType.INT64


def _repeated(models: Mapping[str, ir.Model]) -> set[str]:
    """Return the names of constants that several 8-bit graphs contain with equal contents, large enough to share."""
    counts: dict[tuple[str, str], int] = {}
    for model in (model for model in models.values() if is_8_bit(model.graph)):
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and _is_shared(tensor):
                key = name, _digest(tensor.numpy())
                counts[key] = counts.get(key, 0) + 1
    return {name for (name, _), count in counts.items() if count > 1}


def _in_order(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Sort the entries of `proto`, so that equal graphs give equal bytes.

    A graph cut out of a larger one has any order.
    """
    for entries in (proto.graph.initializer, proto.graph.value_info):
        entries.sort(key=lambda entry: str(entry.name))
    return proto


def _point_into_file(model: ir.Model, places: Mapping[str, tuple[int, int]]) -> dict[str, ir.TensorProtocol]:
    """Turn the named initializers into external data, and return their tensors."""
    tensors = {}
    for name, (offset, length) in places.items():
        value = model.graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        tensors[name] = tensor
        shape = ir.Shape([int(str(size)) for size in tensor.shape])
        value.const_value = ir.ExternalTensor(WEIGHTS, offset, length, tensor.dtype, shape=shape, name=name)
    return tensors
