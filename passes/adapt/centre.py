"""Statistics without cancellation: the input of a norm less the source mean, wherever that matters or costs nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.norms.norm_sites import NormSite

# Above this ratio of mean^2 to variance, E[x^2] - E[x]^2 loses more than a decimal digit and a half in float32.
CANCELLATION = 30.0


def centre(op: Builder, site: NormSite) -> tuple[ir.Value, np.ndarray]:
    """Return the site's input less a constant for each channel, and the constant [C]: the source mean, or zeros.

    E[x^2] - E[x]^2 needs a nearly centred x.  If the site is the only reader of a Conv, the source mean moves into the
    Conv's bias at no cost.  Elsewhere x is shifted only if the source statistics need a shift.  The site's node reads
    the shifted input afterwards.
    """
    mean, var = constant(site.node, 3), constant(site.node, 4)
    x = site.node.inputs[0]
    assert x is not None
    if centre_producer(op, site, mean):
        shift = mean
    elif is_counted(x):
        shift = np.zeros_like(mean)
    elif float(np.max(mean**2 / (var + site.eps), initial=0.0)) > CANCELLATION:
        shape = (1, len(mean)) + (1,) * (len(x.shape or ()) - 2)
        x, shift = op.Sub(x, mean.reshape(shape)), mean
    else:
        shift = np.zeros_like(mean)
    site.node.replace_input_with(0, x)
    return x, shift


def is_counted(x: ir.Value) -> bool:
    """Whether x holds the whole numbers of an 8-bit grid: their squares, and sums of those, are exact in float32."""
    maker = x.producer()
    if maker is None or maker.op_type == "Counted":
        return maker is not None
    held = maker.inputs[0] if maker.op_type == "Cast" else None
    return held is not None and held.dtype in (ir.DataType.UINT8, ir.DataType.INT8)


def centre_producer(op: Builder, site: NormSite, mean: np.ndarray) -> bool:
    """Subtract the source mean in the bias of the Conv that only this site reads; False if there is none."""
    x = site.node.inputs[0]
    conv = x.producer() if x is not None else None
    if x is None or conv is None or conv.op_type != "Conv" or len(x.uses()) != 1 or x.is_graph_output():
        return False
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    if bias is not None and bias.const_value is None:
        return False
    old = bias.const_value.numpy() if bias is not None and bias.const_value is not None else np.zeros_like(mean)
    conv.resize_inputs(3)
    conv.replace_input_with(2, op.constant((old - mean).astype(mean.dtype)))
    return True


def constant(node: ir.Node, position: int) -> np.ndarray:
    """The constant input of `node` at `position`, float32."""
    value = node.inputs[position]
    assert value is not None and value.const_value is not None
    return np.array(value.const_value.numpy(), np.float32)
