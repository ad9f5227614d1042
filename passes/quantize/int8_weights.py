"""Store the weights of a layer in 8 bits: the int8 kernel with its scales, and the bias on the grid of the products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.rewire import initializer
from ttac.passes.quantize.fold import STEPS, channel_axis, constants
from ttac.passes.quantize.grids import Grid
from ttac.spec import Target

LARGEST_BIAS = 2.0**30
"""Largest magnitude of a bias on its int32 grid."""


def store_int8(op: Builder, node: ir.Node, step: Grid, target: Target) -> None:
    """Store the kernel as int8 with one scale per output channel, the bias as int32 on the grid of the products."""
    parameters = constants(node)
    assert parameters is not None and node.inputs[1] is not None
    kernel, bias = parameters
    axis = channel_axis(node)
    layer = node.metadata_props.get(LAYER, str(node.name))
    rounded, scale = int8_kernel(kernel, axis, bias, step.scale, target, _steps(node, axis, target))
    along = {"axis": axis} if scale.ndim else {}
    scale_value = op.constant(scale)
    weight = named(op, f"{layer}.kernel.int8", rounded)
    w = op.DequantizeLinear(weight, scale_value, np.zeros(scale.shape, np.int8), name=f"{layer}.kernel", **along)
    node.replace_input_with(1, w)
    if bias is None:
        return
    products = np.asarray(scale * np.float32(step.scale), np.float32)
    whole = np.clip(np.round(bias.astype(np.float64) / products.astype(np.float64)), -(2.0**31), 2.0**31 - 1)
    steps = named(op, f"{layer}.bias.int32", whole.astype(np.int32))
    # The engine multiplies constants once, while it loads; in the file they would take as much as all biases.
    unit = op.Mul(scale_value, step.operands[0], name=f"{layer}.bias.scale")
    zero, along = np.zeros(products.shape, np.int32), {"axis": 0} if scale.ndim else {}
    node.replace_input_with(2, op.DequantizeLinear(steps, unit, zero, name=f"{layer}.bias.rounded", **along))


def _steps(node: ir.Node, axis: int, target: Target) -> np.ndarray | None:
    """Return the scales [C] of a kernel that is already 8-bit; None if they are unknown or do not fit the target."""
    kernel = node.inputs[1]
    noted = kernel.meta.get(STEPS) if kernel is not None else None
    if noted is None or not target.int8_per_channel:
        return None
    return np.asarray(noted[1]) if noted[1].ndim == 0 or noted[0] == axis else None


def named(op: Builder, name: str, array: np.ndarray) -> ir.Value:
    """Return a new constant of this name, or of the next free one."""
    candidate, count = name, 1
    while candidate in op.graph.initializers:
        count += 1
        candidate = f"{name}.{count}"
    return initializer(op.graph, candidate, array)


def int8_kernel(
    kernel: np.ndarray,
    axis: int,
    bias: np.ndarray | None,
    step: float,
    target: Target,
    steps: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a kernel as int8 and its scale: [C] with one for each output channel, or one in all.

    The scale is the largest magnitude over 127, or over 63 for engines whose 16-bit sums would overflow
    (`int8_reduce_range`). A kernel that is already 8-bit takes the scale in `steps`. A channel of almost nothing but
    bias gets a scale coarse enough for its bias to fit 32 bits.
    """
    most = 63 if target.int8_reduce_range and steps is None else 127
    others = tuple(i for i in range(kernel.ndim) if i != axis)
    largest = np.abs(kernel).max(axis=others).astype(np.float64)
    least = np.abs(bias.astype(np.float64)) / (step * LARGEST_BIAS) if bias is not None else np.zeros_like(largest)
    scale = np.maximum(largest / most if steps is None else steps, least)
    if not target.int8_per_channel:
        scale = scale.max()
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(kernel.ndim)] if scale.ndim else []
    rounded = np.round(kernel.astype(np.float64) / scale.astype(np.float64).reshape(shape))
    return np.clip(rounded, -most if steps is None else -128, most).astype(np.int8), scale
