"""Execute a graph in float64, by the reference implementation of the onnx package: exact, and slow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from ttac.passes.graph.shapes import dims
from ttac.passes.verify.reference_pools import GlobalMaxPool, MaxPool

AFFORDABLE = 20_000_000_000
"""Largest number of multiplications of a forward in float64, which takes about ten seconds."""
ALIKE = 1e-2
"""Relative difference of float64 outputs from float32 outputs that is rounding."""
TINY = 1e-6
"""Least magnitude of outputs to which the difference is relative."""


class Float64:
    """A graph that onnx's reference implementation executes in float64; a call takes feeds and returns the outputs."""

    def __init__(self, model: ir.Model) -> None:
        self._evaluator = ReferenceEvaluator(_in_float64(ir.to_proto(model)), new_ops=[MaxPool, GlobalMaxPool])
        self._inputs = [str(value.name) for value in model.graph.inputs]

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs, float64, for `feeds`, which may hold more than the inputs."""
        outputs = self._evaluator.run(None, {name: _float64(feeds[name]) for name in self._inputs})
        assert isinstance(outputs, list)
        return outputs


def float64_of(model: ir.Model, feeds: Mapping[str, np.ndarray], expected: Sequence[np.ndarray]) -> Float64 | None:
    """Return `model` in float64, or None where that is too slow, fails, or differs from `expected` outputs."""
    if multiplications(model, feeds) > AFFORDABLE:
        return None
    try:
        exact = Float64(model)
        outputs = exact(feeds)
    except Exception:  # the reference implementation raises anything for an operator that lacks float64
        return None
    return exact if all(map(_alike, outputs, expected)) else None


def _alike(actual: np.ndarray, expected: np.ndarray) -> bool:
    if actual.shape != expected.shape:
        return False
    return bool(np.abs(actual - expected).max(initial=0) <= ALIKE * np.abs(expected).max(initial=TINY))


def multiplications(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> int:
    """Return about how many multiplications the linear layers of `model` take on `feeds`."""
    total = 0
    samples = max((len(feeds[str(x.name)]) for x in model.graph.inputs if any(map(_is_open, dims(x)))), default=1)
    for node in model.graph:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and node.inputs[1] is not None:
            weights = [samples if _is_open(size) else int(size) for size in dims(node.inputs[1])]
            values = math.prod(samples if _is_open(size) else int(size) for size in dims(node.outputs[0]))
            total += values * (math.prod(weights[1:]) if "Conv" in node.op_type else weights[-2])
    return total


def _is_open(size: int | str) -> bool:
    return isinstance(size, str)


def _float64(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return `model` with constants and casts in float64 instead of float32, in place."""
    single, double = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    for tensor in [*model.graph.initializer, *(each.t for each in attributes if each.name == "value")]:
        if tensor.data_type == single:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for attribute in attributes:
        if attribute.name == "to" and attribute.i == single:
            attribute.i = double
    return model
