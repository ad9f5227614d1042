"""Nodes of the operator library written out in standard operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from tests.support.block_order import blocked, plain
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.windows import Window, window_of
from ttac.passes.operators import pool_gradients  # noqa: F401
from ttac.runtime.graph_check import KERNEL_DOMAIN

Spelling = Callable[[Builder, ir.Node, int], ir.Value | tuple[ir.Value, ...]]


def _norm_given(op: Builder, node: ir.Node) -> tuple[ir.Value, ...]:
    """A norm with given statistics; its channels may be those of all samples."""
    x, scale, bias, _, mean, variance = node.inputs
    batch, channels, *sizes = dims(x)
    height, width = (int(size) for size in sizes)
    groups = [] if batch == 1 else [int(channels) // _block_of(node)]
    cells = op.Reshape(x, [-1, *groups, height * width, _block_of(node)])
    slope, offset, mean, variance = (op.Reshape(v, [-1, 1, _block_of(node)]) for v in (scale, bias, mean, variance))
    u = op.Add(op.Mul(op.Div(op.Sub(cells, mean), op.Sqrt(op.Add(variance, _epsilon(node)))), slope), offset)
    rows = [1, -1] if batch == 1 else [-1, int(channels)]
    return (op.Reshape(_activated(op, node, u), [*rows, height, width]),)


def _norm_forward(op: Builder, node: ir.Node, _: int) -> tuple[ir.Value, ...]:
    if node.attributes.get_string("statistics", "batch") == "given":
        return _norm_given(op, node)
    x, scale, bias, residual = (*node.inputs, None)[:4]
    made = plain(op, x, dims(x), _block_of(node))
    mean = op.ReduceMean(made, [0, 2, 3], keepdims=1)
    centred = op.Sub(made, mean)
    variance = op.ReduceMean(op.Mul(centred, centred), [0, 2, 3], keepdims=1)
    u = _affine(op, node, op.Div(centred, op.Sqrt(op.Add(variance, _epsilon(node)))), scale, bias)
    if residual is not None:
        u = op.Add(u, plain(op, residual, dims(x), _block_of(node)))
    y = _activated(op, node, u)
    y, mask = (blocked(op, value, dims(x), _block_of(node)) for value in (y, _mask(op, node, u)))
    bits = op.Reshape(op.Cast(mask, to=int(ir.DataType.UINT8)), [0, -1])  # in bytes; only NormBackward reads them
    moments = [op.Squeeze(value, [0, 2, 3]) for value in (mean, variance)]
    return y, *moments, op.Cast(mask, to=int(ir.DataType.BOOL)), bits


def _activated(op: Builder, node: ir.Node, u: ir.Value) -> ir.Value:
    act = node.attributes.get_string("act")
    low, high = (node.attributes.get_float(name, 0.0) for name in ("low", "high"))
    spellings: dict[str, Callable[[], ir.Value]] = {
        "none": lambda: op.Identity(u),
        "relu": lambda: op.Relu(u),
        "clip": lambda: op.Clip(u, low, high),
        "silu": lambda: op.Mul(u, op.Sigmoid(u)),
        "hardswish": lambda: op.HardSwish(u),
        "gelu": lambda: op.ExactGelu(u),
    }
    return spellings[act]()


def _derivative(op: Builder, node: ir.Node, u: ir.Value) -> ir.Value:
    act = node.attributes.get_string("act")
    if act == "silu":
        s = op.Sigmoid(u)
        return op.Mul(s, op.Add(1.0, op.Mul(u, op.Sub(1.0, s))))
    if act == "hardswish":
        inside = op.Cast(op.Less(op.Abs(u), 3.0), to=int(ir.DataType.FLOAT))
        return op.Add(op.HardSigmoid(u, alpha=1 / 6, beta=0.5), op.Mul(op.Mul(u, 1 / 6), inside))
    if act == "gelu":
        return op.GeluDerivative(u)
    return _mask(op, node, u)


def _block_of(node: ir.Node) -> int:
    return node.attributes.get_int("block")


def _epsilon(node: ir.Node) -> float:
    return node.attributes.get_float("epsilon")


def _affine(
    op: Builder, node: ir.Node, x: ir.Value, scale: ir.Value | None, offset: ir.Value | None = None
) -> ir.Value:
    scaled = op.Mul(x, op.Unsqueeze(scale, [0, 2, 3]))
    return scaled if offset is None else op.Add(scaled, op.Unsqueeze(offset, [0, 2, 3]))


def _mask(op: Builder, node: ir.Node, u: ir.Value) -> ir.Value:
    """Where the activation of u has the derivative 1, as float32."""
    single = int(ir.DataType.FLOAT)
    if node.attributes.get_string("act") == "clip":
        low, high = (node.attributes.get_float(name) for name in ("low", "high"))
        return op.Cast(op.And(op.Greater(u, low), op.Less(u, high)), to=single)
    return op.Cast(op.Greater(u, 0.0), to=single)


def _norm_backward(op: Builder, node: ir.Node, _: int) -> tuple[ir.Value, ...]:
    dy, x, scale, bias, mean, variance, mask, _, bits, more = [*node.inputs, *[None] * 4][:10]
    shape, block = dims(x), _block_of(node)
    mask = op.Reshape(bits, op.Shape(x)) if bits is not None else mask
    dy, x = plain(op, dy, shape, block), plain(op, x, shape, block)
    r = op.Reciprocal(op.Sqrt(op.Add(variance, _epsilon(node))))
    xhat = op.Mul(op.Sub(x, op.Unsqueeze(mean, [0, 2, 3])), op.Unsqueeze(r, [0, 2, 3]))
    du = dy
    if mask is not None:
        du = op.Mul(dy, plain(op, op.Cast(mask, to=int(ir.DataType.FLOAT)), shape, block))
    elif node.attributes.get_string("act") != "none":
        du = op.Mul(dy, _derivative(op, node, _affine(op, node, xhat, scale, bias)))
    dbias = op.ReduceSum(du, [0, 2, 3], keepdims=0)
    dscale = op.ReduceSum(op.Mul(du, xhat), [0, 2, 3], keepdims=0)
    count = op.Cast(op.Div(op.Size(x), op.Size(scale)), to=int(ir.DataType.FLOAT))
    along = _affine(op, node, xhat, op.Div(dscale, count), op.Div(dbias, count))
    dx = blocked(op, _affine(op, node, op.Sub(du, along), op.Mul(scale, r)), shape, block)
    return op.Add(dx, more) if more is not None else dx, dscale, dbias, blocked(op, du, shape, block)


def _channels(node: ir.Node) -> int:
    """Channels of a layer norm, without padding."""
    shape = dims(node.inputs[0])
    return node.attributes.get_int("channels", 0) or int(shape[node.attributes.get_int("axis")])


def _rows(op: Builder, node: ir.Node, value: ir.Value | None) -> ir.Value:
    """A tensor of a layer norm with its channels, without padding, as the last axis."""
    assert value is not None
    if node.attributes.get_int("axis") == -1:
        return value
    channels = op.Slice(plain(op, value, dims(value), _block_of(node)), [0], [_channels(node)], [1])
    return op.Transpose(channels, perm=[0, 2, 3, 1])


def _from_rows(op: Builder, node: ir.Node, rows: ir.Value) -> ir.Value:
    """The inverse of `_rows`, with zeros in the padding."""
    if node.attributes.get_int("axis") == -1:
        return rows
    shape = dims(node.inputs[0])
    missing = int(shape[1]) - _channels(node)
    return blocked(op, op.Pad(op.Transpose(rows, perm=[0, 3, 1, 2]), [0] * 5 + [missing, 0, 0]), shape, _block_of(node))


def _vector(op: Builder, node: ir.Node, value: ir.Value | None) -> ir.Value:
    """A vector of channels without padding."""
    return op.Slice(value, [0], [_channels(node)], [0])


def _filled(op: Builder, node: ir.Node, vector: ir.Value) -> ir.Value:
    """A vector of channels with zeros in the padding."""
    width = int(dims(node.inputs[0])[node.attributes.get_int("axis")])
    return op.Pad(vector, [0, width - _channels(node)])


def _layer_forward(op: Builder, node: ir.Node, _: int) -> tuple[ir.Value, ...]:
    x, scale, bias, residual = (*node.inputs, None)[:4]
    total = _rows(op, node, op.Add(x, residual) if residual is not None else x)
    mean = op.ReduceMean(total, [-1], keepdims=1)
    centred = op.Sub(total, mean)
    variance = op.ReduceMean(op.Mul(centred, centred), [-1], keepdims=1)
    r = op.Reciprocal(op.Sqrt(op.Add(variance, _epsilon(node))))
    y = op.Add(op.Mul(op.Mul(centred, r), _vector(op, node, scale)), _vector(op, node, bias))
    return _from_rows(op, node, y), op.Squeeze(mean, [-1]), op.Squeeze(r, [-1]), _from_rows(op, node, total)


def _layer_backward(op: Builder, node: ir.Node, _: int) -> tuple[ir.Value, ...]:
    dy, x, scale, mean, r, more = (*node.inputs, None)[:6]
    r, axes = op.Unsqueeze(r, [-1]), list(range(len(dims(x)) - 1))
    dy, x = _rows(op, node, dy), _rows(op, node, x)
    xhat, g = op.Mul(op.Sub(x, op.Unsqueeze(mean, [-1])), r), op.Mul(dy, _vector(op, node, scale))
    along = op.Mul(xhat, op.ReduceMean(op.Mul(g, xhat), [-1], keepdims=1))
    dx = op.Mul(op.Sub(op.Sub(g, op.ReduceMean(g, [-1], keepdims=1)), along), r)
    sums = [_filled(op, node, op.ReduceSum(value, axes, keepdims=0)) for value in (op.Mul(dy, xhat), dy)]
    dx = _from_rows(op, node, dx)
    return op.Add(dx, more) if more is not None else dx, *sums


def _softmax_backward(op: Builder, node: ir.Node, _: int) -> ir.Value:
    dy, y = node.inputs
    return op.Mul(y, op.Sub(dy, op.ReduceSum(op.Mul(dy, y), [-1], keepdims=1)))


def _activation_backward(op: Builder, node: ir.Node, _: int) -> ir.Value:
    dy, x = node.inputs
    assert x is not None
    return op.Mul(dy, _derivative(op, node, x))


def _window(node: ir.Node) -> dict[str, list[int]]:
    return {name: list(node.attributes.get_ints(name)) for name in ("kernel_shape", "strides", "pads")}


def _pool_forward(op: Builder, node: ir.Node, _: int) -> tuple[ir.Value, ...]:
    (x,) = node.inputs
    made, block = plain(op, x, dims(x), _block_of(node)), _block_of(node)
    y = op.MaxPool(made, **_window(node))
    taps = op.MaxPoolTaps(made, y, **window_of_pool(node, dims(x), dims(node.outputs[0])).attributes())
    number = blocked(op, op.Cast(taps, to=int(ir.DataType.FLOAT)), dims(node.outputs[0]), block)
    return blocked(op, y, dims(node.outputs[0]), block), op.Cast(number, to=int(ir.DataType.UINT8))


def window_of_pool(node: ir.Node, ins: Sequence[int | str], outs: Sequence[int | str]) -> Window:
    sizes = [[int(size) for size in shape[2:]] for shape in (ins, outs)]
    return window_of(node, node.attributes.get_ints("kernel_shape"), *sizes)


def _pool_backward(op: Builder, node: ir.Node, _: int) -> ir.Value:
    dy, taps = node.inputs
    block, shape = _block_of(node), dims(node.outputs[0])
    window = window_of_pool(node, shape, dims(dy))
    number = plain(op, op.Cast(taps, to=int(ir.DataType.FLOAT)), dims(taps), block)
    dx = op.MaxPoolScatter(
        plain(op, dy, dims(dy), block), op.Cast(number, to=int(ir.DataType.UINT8)), **window.attributes()
    )
    return blocked(op, dx, shape, block)


def _interleave(op: Builder, node: ir.Node, _: int) -> ir.Value:
    phases, block = [*node.inputs, None, None, None][:4], _block_of(node)
    some = next(phase for phase in phases if phase is not None)
    channels, height, width = (int(size) for size in dims(some)[1:])
    maps = [plain(op, phase if phase is not None else op.Mul(some, 0.0), dims(some), block) for phase in phases]
    joined = op.Concat(*[op.Unsqueeze(phase, [2]) for phase in maps], axis=2)
    split = op.Reshape(joined, [-1, channels, 2, 2, height, width])
    made = op.Reshape(op.Transpose(split, perm=[0, 1, 4, 2, 5, 3]), [-1, channels, 2 * height, 2 * width])
    return blocked(op, made, dims(node.outputs[0]), block)


def _depthwise_input_grad(op: Builder, node: ir.Node, _: int) -> ir.Value:
    dy, w = node.inputs
    return _transposed(op, node, dy, w, dims(node.outputs[0]), node.attributes.get_ints("sizes"))


def _transposed(
    op: Builder,
    node: ir.Node,
    dy: ir.Value | None,
    w: ir.Value | None,
    shape: Sequence[int | str],
    sizes: Sequence[int | str],
) -> ir.Value:
    """The input gradient of a depthwise convolution; `shape` is that of the result in blocks."""
    assert dy is not None
    window, block = _window(node), _block_of(node)
    extra = [
        int(size)
        - (int(out) - 1) * window["strides"][axis]
        - window["kernel_shape"][axis]
        + sum(window["pads"][axis::2])
        for axis, (size, out) in enumerate(zip(sizes, dims(dy)[2:], strict=True))
    ]
    padding = {"output_padding": extra} if any(extra) else {}
    dx = op.ConvTranspose(plain(op, dy, dims(dy), block), w, **window, group=int(dims(w)[0]), **padding)
    return _of_shape(blocked(op, dx, shape, block), shape)


def _of_shape(value: ir.Value, shape: Sequence[int | str]) -> ir.Value:
    value.shape = ir.Shape(list(shape))
    return value


def _part(node: ir.Node, number: int, op_type: str, inputs: Sequence[ir.Value | None]) -> ir.Node:
    """One of the two norms of a depthwise node, as a node that is in no graph."""
    names = [name for name in ("epsilon", "act", "low", "high") if f"{name}{number}" in node.attributes]
    values = {name: node.attributes[f"{name}{number}"].value for name in names}
    return ir.node(op_type, list(inputs), {"block": _block_of(node), **values}, domain=KERNEL_DOMAIN)


def _depthwise_forward(op: Builder, node: ir.Node, block: int) -> tuple[ir.Value, ...]:
    x1, scale1, bias1, w, conv_bias, scale2, bias2 = node.inputs
    y1, mean1, var1, *_ = _norm_forward(op, _part(node, 1, "NormForward", [x1, scale1, bias1]), block)
    made = op.Conv(plain(op, y1, dims(x1), _block_of(node)), w, conv_bias, **_window(node), group=int(dims(w)[0]))
    shape = dims(node.outputs[0])
    x2 = _of_shape(blocked(op, made, shape, _block_of(node)), shape)
    y2, mean2, var2, *_ = _norm_forward(op, _part(node, 2, "NormForward", [x2, scale2, bias2]), block)
    return y2, x2, mean1, var1, mean2, var2


def _depthwise_backward(op: Builder, node: ir.Node, block: int) -> tuple[ir.Value, ...]:
    dy2, x2, x1, w, *first = node.inputs[:8]
    second = node.inputs[8:]
    dx2, dscale2, dbias2, _ = _norm_backward(op, _part(node, 2, "NormBackward", [dy2, x2, *second]), block)
    dy1 = _transposed(op, node, _of_shape(dx2, dims(x2)), w, dims(x1), dims(x1)[2:])
    dx1, dscale1, dbias1, _ = _norm_backward(op, _part(node, 1, "NormBackward", [dy1, x1, *first]), block)
    return dx1, dscale1, dbias1, dscale2, dbias2


KERNEL_SPELLINGS: dict[str, Spelling] = {
    "NormForward": _norm_forward,
    "NormBackward": _norm_backward,
    "LayerNormForward": _layer_forward,
    "LayerNormBackward": _layer_backward,
    "ActivationForward": lambda op, node, _: _activated(op, node, node.inputs[0]),  # type: ignore[arg-type]
    "ActivationBackward": _activation_backward,
    "SoftmaxBackward": _softmax_backward,
    "DepthwiseInputGrad": _depthwise_input_grad,
    "DepthwiseForward": _depthwise_forward,
    "DepthwiseBackward": _depthwise_backward,
    "MaxPoolForward": _pool_forward,
    "MaxPoolBackward": _pool_backward,
    "Interleave": _interleave,
}
