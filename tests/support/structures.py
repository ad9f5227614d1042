"""Models as structure only: an ONNX file without its large weights; a reader draws them again from a seed.

Shape, mean and standard deviation of each removed tensor stay in the file, so that the drawn tensor behaves alike.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx.numpy_helper import from_array, to_array

SMALL, LEVELS = 16, 4
"""Largest numbers of elements, and of different values, of a tensor that is kept: scalars, shapes, masks."""
DRAWN = "drawn"
NARROW = (np.int8, np.uint8)
"""Types of 8-bit weights, which are drawn like float32 weights and rounded."""
KEPT = ("pkg.torch.onnx.name_scopes", "pkg.onnxscript.rewriter.rule_name")
"""Node metadata that recognition reads."""


def strip(source: Path, target: Path) -> None:
    """Write the structure of the ONNX file `source` to the gzip file `target`; the bytes are always the same."""
    model = onnx.load(str(source))
    for field in ("doc_string", "producer_version"):
        model.ClearField(field)
    del model.graph.value_info[:], model.metadata_props[:]
    model.graph.ClearField("doc_string")
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key in KEPT]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        node.ClearField("doc_string")
    for value in [*model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    for tensor in _tensors(model.graph):
        tensor.ClearField("doc_string")
        array = to_array(tensor)
        weighs = array.dtype == np.float32 or array.dtype in NARROW
        if weighs and array.size > SMALL and len(np.unique(array)) > LEVELS:
            _empty(tensor, array)
    target.write_bytes(gzip.compress(model.SerializeToString(deterministic=True), 9, mtime=0))


def _empty(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    for field in ("raw_data", "float_data", "int32_data"):
        tensor.ClearField(field)
    positive = "positive" if (array > 0).all() else "any"
    tensor.doc_string = f"{DRAWN} {float(array.mean()):.6g} {float(array.std()):.6g} {positive}"


def restore(structure: Path, target: Path) -> Path:
    """Write the model to `target` with weights that are drawn by tensor name."""
    model = onnx.load_from_string(gzip.decompress(structure.read_bytes()))
    for tensor in _tensors(model.graph):
        kind, *told = tensor.doc_string.split()[:4] or [""]
        if kind == DRAWN:
            mean, deviation = float(told[0]), float(told[1])
            random = np.random.default_rng(zlib.crc32(tensor.name.encode()))
            array = random.normal(mean, deviation, tuple(tensor.dims))
            if told[2] == "positive":
                array = np.maximum(np.abs(array), mean / 8)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            if dtype in NARROW:
                array = np.clip(np.rint(array), *(np.iinfo(dtype).min, np.iinfo(dtype).max))
            tensor.CopyFrom(from_array(array.astype(dtype), tensor.name))
    onnx.save(model, str(target))
    return target


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
