"""Small source models as ONNX text, for the tests of the first rooms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

Weights = dict[str, tuple[int, ...] | np.ndarray]

CONV_NORM = """
net (float[batch,3,8,8] x) => (float[batch,5] y) {
  ["/conv/Conv"] c = Conv <pads = [1,1,1,1]> (x, "conv.weight")
  ["/bn/BatchNormalization"] b = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  ["/Relu"] r = Relu (b)
  ["/pool/GlobalAveragePool"] p = GlobalAveragePool (r)
  ["/Flatten"] f = Flatten (p)
  ["/fc/Gemm"] y = Gemm <transB = 1> (f, "fc.weight", "fc.bias")
}
"""


def norm(name: str, channels: int) -> Weights:
    """Return the shapes of the four tensors of a batch norm, under PyTorch's names."""
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts}


CONV_NORM_WEIGHTS: Weights = {"conv.weight": (4, 3, 3, 3), **norm("bn", 4), "fc.weight": (5, 4), "fc.bias": (5,)}


def source(
    text: str = CONV_NORM,
    weights: Mapping[str, tuple[int, ...] | np.ndarray] | None = None,
    *,
    opset: int = 18,
    ir_version: int = 8,
    seed: int = 0,
) -> onnx.ModelProto:
    """Return a model from the text of its graph; weights are arrays, or shapes for random numbers from 0.5 to 1.5."""
    model = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>{text}')
    random = np.random.default_rng(seed)
    for name, given in (CONV_NORM_WEIGHTS if weights is None else weights).items():
        array = given if isinstance(given, np.ndarray) else random.uniform(0.5, 1.5, given).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    """Write `model` to `model.onnx` in `folder`, and return the path."""
    path = folder / "model.onnx"
    onnx.save_model(model, str(path))
    return path


def listing(model: ir.Model) -> list[str]:
    """Return one line per node, `y [N,5] = Reshape (x, [-1, 5]) axis=1`, with constants of up to eight integers."""
    return [_line(node) for node in model.graph]


def _line(node: ir.Node) -> str:
    outputs = ", ".join(f"{value.name} {value.shape}" for value in node.outputs)
    attributes = "".join(f" {key}={attribute.value}" for key, attribute in sorted(node.attributes.items()))
    return f"{outputs} = {node.op_type} ({', '.join(_operand(value) for value in node.inputs)}){attributes}"


def _operand(value: ir.Value | None) -> str:
    if value is None:
        return "-"
    tensor = value.const_value
    if tensor is not None and not tensor.dtype.is_floating_point() and tensor.size <= 8:
        return str(tensor.numpy().tolist())
    return str(value.name)


def run(model: onnx.ModelProto | ir.Model, x: np.ndarray) -> np.ndarray:
    """Return the first output of the model on this machine's engine."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])
