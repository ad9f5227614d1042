"""One native operator in a session, and the memory order of its activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import ttac_kernels
from onnx import helper

DOMAIN = "ttac.kernels"
FLOAT = onnx.TensorProto.FLOAT
TYPES = {
    "mask": onnx.TensorProto.BOOL,
    "taps": onnx.TensorProto.UINT8,
    "bits": onnx.TensorProto.UINT8,
    "values": onnx.TensorProto.INT8,
    "places": onnx.TensorProto.INT64,
}
"""Types of the outputs that are not float32, by name."""


def session_of(
    op_type: str,
    inputs: Mapping[str, np.ndarray | None],
    outputs: Sequence[str],
    attributes: Mapping[str, Any],
    threads: int = 2,
) -> onnxruntime.InferenceSession:
    """Return a session of one node; an input of None is absent, and so is an output with an empty name."""
    names = [name if array is not None else "" for name, array in inputs.items()]
    node = helper.make_node(op_type, names, outputs, domain=DOMAIN, **attributes)
    fed = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
        if array is not None
    ]
    made = [helper.make_tensor_value_info(name, TYPES.get(name, FLOAT), None) for name in outputs if name]
    versions = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(helper.make_graph([node], op_type, fed, made), opset_imports=versions, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(ttac_kernels.library_path()))
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(
    op_type: str,
    inputs: Mapping[str, np.ndarray | None],
    outputs: Sequence[str],
    attributes: Mapping[str, Any],
    threads: int = 2,
) -> dict[str, np.ndarray]:
    """Return the outputs of one node by name."""
    session = session_of(op_type, inputs, outputs, attributes, threads)
    found = session.run(None, {name: array for name, array in inputs.items() if array is not None})
    return dict(zip([name for name in outputs if name], found, strict=True))


def blocked(x: np.ndarray, block: int) -> np.ndarray:
    """Memory order [N, C/block, ..., block] under the shape [N, C, ...] of `x`."""
    samples, channels = x.shape[:2]
    split = x.reshape(samples, channels // block, block, -1)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 2)).reshape(x.shape)


def plain(x: np.ndarray, block: int) -> np.ndarray:
    """The inverse of `blocked`."""
    samples, channels = x.shape[:2]
    split = x.reshape(samples, channels // block, -1, block)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 2)).reshape(x.shape)
