"""Files that compute in float16: the same model in float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
FEW = 16
"""Elements of a float16 constant up to which it may be a scale beside float32 weights."""
TYPED = ("to", "dtype", "output_dtype")
"""Attributes that name the type of an output."""


def widen(model: ir.Model, say: Callable[[str], None]) -> None:
    """Turn weights, values and casts of float16 into float32, in place, if the file has float16 weights.

    float32 holds every number of float16, so only the rounding of each operator is lost.
    """
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    narrow = [value for value in values if value.const_value is not None and value.const_value.dtype == HALF]
    if all(value.const_value is None or value.const_value.size <= FEW for value in narrow):
        return
    for value in narrow:
        assert value.const_value is not None
        value.const_value = _wide(value.const_value, str(value.name))
        value.dtype = SINGLE
    for graph in model.graphs():
        for value in [*graph.inputs, *(each for node in graph for each in node.outputs)]:
            if value.dtype == HALF:
                value.dtype = SINGLE
        for node in graph:
            _widen_attributes(node)
    say("the file computes in float16: the bundle computes in float32")


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.INT and name in TYPED and attribute.as_int() == HALF:
            node.attributes[name] = ir.AttrInt64(name, int(SINGLE))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == HALF:
            node.attributes[name] = ir.AttrTensor(name, _wide(attribute.as_tensor(), name))


def _wide(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), name=name)
