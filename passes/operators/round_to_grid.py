"""ttac operators that round to an 8-bit grid: one node with a gradient, expanded into the pair that engines fuse."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import Types, composite, like


@composite("Rounded", like(0))
def rounded(op: Builder, node: ir.Node) -> ir.Value:
    """x, scale, zero -> the nearest of the numbers (q - zero)*scale, q in 8 bits: QuantizeLinear, DequantizeLinear."""
    x, scale, zero = node.inputs
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero), scale, zero)


def _counted(node: ir.Node) -> Types:
    value = node.inputs[0]
    assert value is not None
    return [(ir.DataType.FLOAT, value.shape)]


@composite("Counted", _counted)
def counted(op: Builder, node: ir.Node) -> ir.Value:
    """x, scale, zero -> the q of this number, 0 to 255 or -128 to 127, in float32: QuantizeLinear, Cast."""
    x, scale, zero = node.inputs
    return op.Cast(op.QuantizeLinear(x, scale, zero), to=int(ir.DataType.FLOAT))


def ends(node: ir.Node) -> tuple[float, float]:
    """Return the lowest and the highest number of the grid to which a node of this file rounds."""
    scale, zero = (value.const_value for value in node.inputs[1:3] if value is not None)
    assert scale is not None and zero is not None
    smallest, offset = int(np.iinfo(zero.numpy().dtype).min), int(zero.numpy())
    step = float(scale.numpy())
    return (smallest - offset) * step, (smallest + 255 - offset) * step
