"""Refuse layers whose weights have shapes that an engine happens to accept but no exporter writes."""

from __future__ import annotations

import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.places import node_place, value_place

VECTORS = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
}
"""Operator -> positions of the inputs that hold one value per channel."""


def refuse_wrong_operands(model: ir.Model) -> None:
    """Raise UnsupportedError, naming the node, where a bias or a norm's parameter is no vector of the right length."""
    for node in model.graph:
        for position in VECTORS.get(node.op_type, ()):
            value = node.inputs[position] if position < len(node.inputs) else None
            if value is None or value.shape is None:
                continue
            channels = _channels(node)
            if len(value.shape) != 1 or (channels is not None and value.shape[0] not in (channels, None)):
                raise UnsupportedError(
                    f"the input {value_place(value)} of `{node.op_type}` has shape {value.shape}, "
                    "not one value per channel",
                    where=node_place(node),
                    hint="export the model again; the file is damaged or was edited",
                )


def _channels(node: ir.Node) -> int | None:
    """Channels of the node's output, None where its shape is unknown."""
    shape = node.outputs[0].shape
    size = shape[1] if shape is not None and len(shape) > 1 else None
    return size if isinstance(size, int) else None
