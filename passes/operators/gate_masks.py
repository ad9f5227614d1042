"""ttac operators that mask gradients. A mask is a bool tensor; a kept mask takes one bit per element."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import Types, composite, like


def _mask(node: ir.Node) -> Types:
    value = node.inputs[0]
    assert value is not None
    return [(ir.DataType.BOOL, value.shape)]


@composite("Positive", _mask)
def positive(op: Builder, node: ir.Node) -> ir.Value:
    """x -> x > 0, as bool."""
    return op.Greater(node.inputs[0], 0.0)


@composite("Between", _mask)
def between(op: Builder, node: ir.Node) -> ir.Value:
    """x, low, high (scalars, one of them may be absent) -> low < x < high, as bool."""
    x, low, high = (*node.inputs, None)[:3]
    if low is None:
        return op.Less(x, high)
    above = op.Greater(x, low)
    return above if high is None else op.And(above, op.Less(x, high))


STEEP = float(np.finfo(np.float32).max)
"""Factor that brings every normal positive float32 to 1 or above."""


@composite("Masked", like(0))
def masked(op: Builder, node: ir.Node) -> ir.Value:
    """g, mask -> g where mask, else 0. Cast and Mul: `Where` costs seven times as much in the engine.

    Where the expansion computes the mask from a float x > 0, a steep HardSigmoid replaces the comparison and the
    cast, in half their time. Only below the smallest normal number is it between 0 and 1. Packed bits become numbers
    directly.
    """
    g, mask = node.inputs
    assert g is not None and g.dtype is not None and mask is not None
    source = mask.producer()
    if source is not None and source.op_type == "Positive" and g.dtype == ir.DataType.FLOAT:
        return op.Mul(g, op.HardSigmoid(source.inputs[0], alpha=STEEP, beta=0.0))
    if source is not None and source.op_type == "UnpackBits":
        shape = list(source.attributes.get_ints("shape"))
        return op.Mul(g, op.UnpackBits(source.inputs[0], shape=shape, to=int(g.dtype)))
    return op.Mul(g, op.Cast(mask, to=int(g.dtype)))
