"""Write sparse weights of a file as dense tensors, which later rooms read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx.numpy_helper import from_array, to_array

from ttac.errors import UnsupportedError

LARGEST = 1 << 30
"""Largest number of bytes of one dense tensor."""


def make_dense(graphs: Iterable[onnx.GraphProto], path: Path) -> None:
    """Write the sparse initializers of the graphs, and the sparse constants of their nodes, dense; in place.

    Raises UnsupportedError for places outside the shape, and for tensors of more than `LARGEST` bytes.
    """
    for graph in graphs:
        graph.initializer.extend(_dense(sparse, path) for sparse in graph.sparse_initializer)
        del graph.sparse_initializer[:]
        for attribute in [attribute for node in graph.node for attribute in node.attribute]:
            if attribute.HasField("sparse_tensor"):
                tensor = _dense(attribute.sparse_tensor, path)
                attribute.ClearField("sparse_tensor")
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                attribute.t.CopyFrom(tensor)


def _dense(sparse: onnx.SparseTensorProto, path: Path) -> onnx.TensorProto:
    """Return the tensor with the stored values at their places and zeros elsewhere, under the same name."""
    name, dims = sparse.values.name, list(sparse.dims)
    try:
        values, places = to_array(sparse.values), to_array(sparse.indices)
        if min(dims, default=1) < 0 or math.prod(dims) * values.itemsize > LARGEST:
            raise ValueError(f"the shape {dims} needs more than {LARGEST >> 20} MiB")
        flat = places if places.ndim == 1 else np.ravel_multi_index(tuple(places.T), dims)
        if values.ndim != 1 or flat.shape != values.shape:
            raise ValueError(f"{list(values.shape)} values at {list(places.shape)} places")
        if flat.size and not 0 <= flat.min() <= flat.max() < math.prod(dims):
            raise ValueError(f"a place outside the shape {dims}")
        array = np.zeros(math.prod(dims), values.dtype)
        array[flat] = values
    except (ValueError, TypeError) as error:
        problem = f"damaged sparse weights: {error}"
        raise UnsupportedError(problem, where=f"initializer `{name}` of `{path}`", hint="store them dense") from error
    return from_array(array.reshape(dims), name)
