"""Move norms into the layers before them, in float, so that one 8-bit module can take each layer.

A norm that does not adapt disappears in its layer. A norm that adapts stays, but its layer takes over the source's
mean and deviation. The layer's outputs then have mean 0 and variance 1 in every channel and share one 8-bit scale
without loss.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.match import only_reader
from ttac.passes.normalise.affine_nodes import KIND
from ttac.passes.norms.norm_sites import NormSite

ROOM = "quantize"
MADE_OF = "ttac.made_of"
"""Node metadata: the operators that a layer includes in addition to its own."""

STEPS = "ttac.steps"
"""`meta` of a kernel that already lies on an 8-bit grid around 0: (axis, float32 scales along it, or one scale)."""


def fold_norms(model: ir.Model, adapted: Collection[ir.Node]) -> dict[str, str]:
    """Fold every batch norm but the `adapted` ones into the Conv or Gemm before it, in place.

    y = (x - mean)/sqrt(var + eps)*scale + bias becomes kernel*f and (bias_of_layer - mean)*f + bias, f the factor.

    Returns, by the name of each norm's output, the name of its layer's output, which now has the norm's values.
    """
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    norms = [node for node in model.graph if node.op_type == "BatchNormalization" and node not in adapted]
    outputs = {str(norm.outputs[0].name): norm.inputs[0] for norm in norms if _foldable(norm)}
    for norm in norms:
        if _foldable(norm):
            _fold(op, norm)
    return {name: str(x.name) for name, x in outputs.items() if x is not None}


def _foldable(norm: ir.Node) -> bool:
    constant = [value is not None and value.const_value is not None for value in norm.inputs[1:]]
    return layer_before(norm) is not None and constant == [True] * 4


def _fold(op: Builder, norm: ir.Node) -> None:
    layer = layer_before(norm)
    assert layer is not None and norm.graph is not None
    arrays = [value.const_value for value in norm.inputs[1:] if value is not None]
    scale, bias, mean, var = (np.asarray(array.numpy(), np.float64) for array in arrays if array is not None)
    factor = scale / np.sqrt(var + norm.attributes.get_float("epsilon", 1e-5))
    rescale(op, layer, factor, bias - mean * factor)
    x, y = layer.outputs[0], norm.outputs[0]
    y.replace_all_uses_with(x, replace_graph_outputs=True)
    norm.graph.remove(norm, safe=True)
    layer.metadata_props[MADE_OF] = f"{norm.metadata_props.get(KIND) or 'batch'} norm"


def standardise(model: ir.Model, site: NormSite) -> bool:
    """Give the layer before an adapted batch norm outputs of mean 0 and variance 1 on the source, in place.

    With r = sqrt(var + eps), the layer now computes (x - mean)/r, which the norm takes as input. Its source
    statistics become 0 and 1 - eps. The source's output stays the same. So does any output by other statistics, but
    for epsilon, which stays 1e-5 of a variance that is now 1.

    Returns whether the norm has a layer before it that no other node reads.
    """
    layer = layer_before(site.node)
    if layer is None or site.mean is None or site.var is None:
        return False
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    deviation = np.sqrt(site.var.astype(np.float64) + site.eps)
    deviation[deviation == 0] = 1.0
    rescale(op, layer, 1 / deviation, -site.mean / deviation)
    site.node.replace_input_with(3, op.constant(np.zeros_like(site.mean)))
    site.node.replace_input_with(4, op.constant(np.full_like(site.var, 1 - site.eps)))
    return True


def pool_first(norm: ir.Node) -> None:
    """Behind an adapted norm, put MaxPool before Relu instead of after it, in place: the same numbers, fewer of them.

    Engines also move a rounding from behind a MaxPool to its front, but not across a Relu. On 8-bit maps whose
    channels come first, the pooling takes 20 times as long as in float32.
    """
    relu = only_reader(norm.outputs[0], "Relu")
    pool = only_reader(relu.outputs[0], "MaxPool") if relu is not None else None
    if relu is None or pool is None or len(pool.outputs) != 1 or pool.outputs[0].is_graph_output():
        return
    before, between, after = norm.outputs[0], relu.outputs[0], pool.outputs[0]
    between.shape = after.shape
    after.replace_all_uses_with(between)
    pool.replace_input_with(0, before)
    relu.replace_input_with(0, after)
    assert norm.graph is not None
    norm.graph.remove(relu)
    norm.graph.insert_after(pool, relu)


def layer_before(norm: ir.Node) -> ir.Node | None:
    """Return the Conv or Gemm with constant weights whose output only `norm` reads; else None."""
    x = norm.inputs[0]
    layer = x.producer() if x is not None else None
    if x is None or layer is None or len(x.uses()) != 1 or x.is_graph_output():
        return None
    return layer if layer.op_type in ("Conv", "Gemm") and constants(layer) is not None else None


def constants(layer: ir.Node) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Return kernel and bias (None if absent) of a Conv or Gemm, unchanged; None if either is computed."""
    tensors = [value.const_value if value is not None else None for value in layer.inputs[1:3]]
    if not tensors or tensors[0] is None or (len(tensors) > 1 and layer.inputs[2] is not None and tensors[1] is None):
        return None
    if layer.op_type == "Gemm" and not plain_gemm(layer):
        return None
    bias = tensors[1].numpy() if len(tensors) > 1 and tensors[1] is not None else None
    return tensors[0].numpy(), bias


def plain_gemm(layer: ir.Node) -> bool:
    """Return whether a Gemm is x*w + b: without factors, and x not transposed."""
    factors = [layer.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    return factors == [1.0, 1.0] and layer.attributes.get_int("transA", 0) == 0


def channel_axis(layer: ir.Node) -> int:
    """Return the axis of the output channels in a layer's kernel."""
    if layer.op_type == "Conv":
        return 0
    return 0 if layer.op_type == "Gemm" and layer.attributes.get_int("transB", 0) == 1 else 1


def rescale(op: Builder, layer: ir.Node, factor: np.ndarray, offset: np.ndarray) -> None:
    """Let `layer` compute y*factor + offset instead of y, in place; both [C]."""
    parameters = constants(layer)
    assert parameters is not None
    kernel, bias = parameters
    axis = channel_axis(layer)
    shape = [-1 if i == axis else 1 for i in range(kernel.ndim)]
    moved = (bias if bias is not None else np.zeros_like(factor)).astype(np.float64) * factor + offset
    steps = layer.inputs[1].meta.get(STEPS) if layer.inputs[1] is not None else None
    scaled = op.constant((kernel.astype(np.float64) * factor.reshape(shape)).astype(np.float32))
    if steps is not None and steps[0] == axis:
        scaled.meta[STEPS] = (axis, (steps[1] * np.abs(factor)).astype(np.float32))
    layer.resize_inputs(3)
    layer.replace_input_with(1, scaled)
    layer.replace_input_with(2, op.constant(moved.astype(np.float32)))
