"""Take the weights out of a graph and put them back, for tools that only need its nodes."""

from __future__ import annotations

import onnx
import onnx_ir as ir

SMALL_BYTES = 1024
"""Largest initializer, in bytes, that stays in the graph: shapes, axes, scales that inference must see."""

Weights = dict[str, ir.TensorProtocol]


def in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """Return the external tensor, read into memory."""
    return ir.tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)


def without_weights(model: ir.Model, limit: int = SMALL_BYTES) -> tuple[onnx.ModelProto, Weights]:
    """Return the graph with initializers above `limit` bytes turned into inputs, and their tensors.

    `model` stays unchanged.
    """
    bare = model.clone()
    weights = {}
    for name, value in bare.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > limit:
            weights[name] = tensor
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = in_memory(tensor)
    for name, tensor in weights.items():
        value = bare.graph.initializers.pop(name)
        value.const_value, value.dtype, value.shape = None, tensor.dtype, ir.Shape([int(str(d)) for d in tensor.shape])
        bare.graph.inputs.append(value)
    return ir.to_proto(bare), weights


def with_weights(proto: onnx.ModelProto, weights: Weights, like: ir.Model) -> ir.Model:
    """Reverse `without_weights`: return the model with its weights, and with the metadata of the model `like`."""
    model = ir.from_proto(proto)
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = weights[str(value.name)]
        model.graph.register_initializer(value)
    metadata = {node.outputs[0].name: node.metadata_props for node in like.graph}
    for node in model.graph:
        node.metadata_props.update(metadata.get(node.outputs[0].name, {}))
    model.meta.update(like.meta)
    model.metadata_props.clear()
    model.metadata_props.update(like.metadata_props)
    return model
