"""The gradient builder of onnxruntime-training as an oracle: gradients of a forward graph by another implementation.

The oracle calls the C class directly, because `import onnxruntime.training` imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.expand import expand_all
from ttac.passes.graph.shapes import dims


def gradients(
    forward: ir.Model, loss: str, wrt: Sequence[str], feeds: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return d loss / d w for the graph inputs `wrt` of `forward`; skips the test without a training engine."""
    state = pytest.importorskip("onnxruntime.capi._pybind_state")
    if not hasattr(state, "GradientGraphBuilder"):
        pytest.skip("needs onnxruntime-training")
    import onnxruntime as ort

    model = forward.clone()
    in_logarithms(model)
    expand_all(model)
    in_primitives(model)
    model.graph.outputs[:] = [value for node in model.graph for value in node.outputs if value.name == loss]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    builder = state.GradientGraphBuilder(ir.to_proto(model).SerializeToString(), {loss}, set(wrt), loss, options)
    builder.build()
    proto = onnx.load_from_string(builder.get_model())
    for name in wrt:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}_grad", onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = {value.name: feeds[value.name] for value in session.get_inputs() if value.name in feeds}
    seeds = {v.name: np.ones([], np.float32) for v in session.get_inputs() if v.name not in feeds}
    found = session.run([f"{name}_grad" for name in wrt], {**taken, **seeds})
    return dict(zip(wrt, found, strict=True))


def in_logarithms(model: ir.Model) -> None:
    """Replace `Entropy` by logarithms of all probabilities, in place: a formula other than ttac's for the same number."""
    op = Builder(model.graph, "oracle", model.opset_imports[""])
    for node in [node for node in model.graph if node.op_type == "Entropy"]:
        axis = node.attributes.get_int("axis")
        with op.at(str(node.name), before=node):
            log_p = op.LogSoftmax(node.inputs[0], axis=axis)
            value = op.Neg(op.ReduceSum(op.Mul(op.Exp(log_p), log_p), [axis], keepdims=0))
        assert not any(output.uses() for output in node.outputs[1:])
        name, node.outputs[0].name = node.outputs[0].name, "entropy.replaced"
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
        value.name = name


def in_primitives(model: ir.Model) -> None:
    """Expand, in place, operators without gradient in the oracle, with a wrong gradient, or with another meaning."""
    op = Builder(model.graph, "oracle", model.opset_imports[""])
    for node in list(model.graph):
        spelled = SPELLINGS.get(node.op_type)
        if spelled is not None:
            with op.at(str(node.name), before=node):
                value = spelled(op, node)
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [], node.outputs, [value])


def _batch_normalization(op: Builder, node: ir.Node) -> ir.Value:
    x, scale, bias, mean, var = node.inputs
    shape = [-1] + [1] * (len(dims(x)) - 2)
    eps = node.attributes.get_float("epsilon", 1e-5)
    scale, bias, mean, var = (op.Reshape(v, shape) for v in (scale, bias, mean, var))
    return op.Add(op.Mul(op.Div(op.Sub(x, mean), op.Sqrt(op.Add(var, eps))), scale), bias)


def _layer_normalization(op: Builder, node: ir.Node) -> ir.Value:
    """Compute the first output only; the oracle's gradient of LayerNormalization needs the second and third output."""
    x, scale, bias = (*node.inputs, None)[:3]
    axes = list(range(node.attributes.get_int("axis", -1) % len(dims(x)), len(dims(x))))
    centred = op.Sub(x, op.ReduceMean(x, axes))
    var = op.ReduceMean(op.Mul(centred, centred), axes)
    y = op.Mul(op.Div(centred, op.Sqrt(op.Add(var, node.attributes.get_float("epsilon", 1e-5)))), scale)
    return y if bias is None else op.Add(y, bias)


def _hard_sigmoid(op: Builder, node: ir.Node) -> ir.Value:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return op.Clip(op.Add(op.Mul(node.inputs[0], alpha), beta), 0.0, 1.0)


def _hard_swish(op: Builder, node: ir.Node) -> ir.Value:
    (x,) = node.inputs
    return op.Mul(x, op.Clip(op.Add(op.Mul(x, 1.0 / 6.0), 0.5), 0.0, 1.0))


def _sum_of_squares(op: Builder, node: ir.Node) -> ir.Value:
    keep = node.attributes.get_int("keepdims", 1)
    return op.ReduceSum(op.Mul(node.inputs[0], node.inputs[0]), node.inputs[1], keepdims=keep)


def _elu(op: Builder, node: ir.Node) -> ir.Value:
    x, alpha = node.inputs[0], node.attributes.get_float("alpha", 1.0)
    below = op.Sub(op.Exp(op.Neg(op.Relu(op.Neg(x)))), 1.0)
    return op.Add(op.Relu(x), op.Mul(below, alpha))


def _softplus(op: Builder, node: ir.Node) -> ir.Value:
    return op.Log(op.Add(op.Exp(node.inputs[0]), 1.0))


def _leaky_relu(op: Builder, node: ir.Node) -> ir.Value:
    x, alpha = node.inputs[0], node.attributes.get_float("alpha", 0.01)
    return op.Sub(op.Relu(x), op.Mul(op.Relu(op.Neg(x)), alpha))


def _average_pool(op: Builder, node: ir.Node) -> ir.Value:
    """Compute the mean over windows as separate axes; the oracle's gradient of AveragePool divides by zero."""
    (x,), kernel = node.inputs, list(node.attributes.get_ints("kernel_shape"))
    assert kernel == list(node.attributes.get_ints("strides") or []) and not any(node.attributes.get_ints("pads") or [])
    sizes = [part for size, k in zip(dims(x)[2:], kernel, strict=True) for part in (int(size) // k, k)]
    windows = op.Reshape(x, [-1, int(dims(x)[1]), *sizes])
    return op.ReduceMean(windows, [3 + 2 * axis for axis in range(len(kernel))], keepdims=0, like=node.outputs[0])


SPELLINGS = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Elu": _elu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": _leaky_relu,
    "ReduceSumSquare": _sum_of_squares,
    "Softplus": _softplus,
}
