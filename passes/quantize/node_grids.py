"""The grid of a QuantizeLinear or DequantizeLinear node of a file, as numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.places import node_place
from ttac.passes.quantize.ranges import Range

CLIPPED = "ttac.clipped"
"""`meta` of a QuantizeLinear: smallest and largest number of its grid in use, where the file does not use all."""

QDQ = 'export in the form of QuantizeLinear and DequantizeLinear ("QDQ"), or the float model: `--quantize int8`'
"""Hint: the forms that can be lifted."""


def refusal(node: ir.Node, reason: str) -> UnsupportedError:
    """Return the error that the 8-bit form at `node` has no float meaning."""
    return UnsupportedError(f"8-bit layers in a form that cannot be lifted: {reason}", where=node_place(node), hint=QDQ)


def rounded_type(node: ir.Node) -> np.dtype[Any]:
    """Return the dtype of a QuantizeLinear's output."""
    zero = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] is not None else None
    return np.dtype(np.uint8) if zero is None else zero.numpy().dtype


def number_range(node: ir.Node) -> Range:
    """Return the smallest and the largest number that a QuantizeLinear gives."""
    kind = np.iinfo(rounded_type(node))
    clipped: Range = node.meta.get(CLIPPED, (float(kind.min), float(kind.max)))
    return clipped


def ends_of(node: ir.Node) -> Range:
    """Return the ends of the grid of a QuantizeLinear."""
    scale, zero = operands(node, 1)
    kind = rounded_type(node)
    if scale.size != 1 or kind not in (np.uint8, np.int8):
        raise refusal(node, f"activations are rounded to {kind}, or to a grid for each channel")
    smallest, largest = number_range(node)
    return (smallest - float(zero)) * float(scale), (largest - float(zero)) * float(scale)


def _along(node: ir.Node, operand: np.ndarray, rank: int) -> np.ndarray:
    """Return scales or zero points in a shape that broadcasts along the node's axis."""
    if operand.ndim == 0 or operand.size == 1:
        return operand.reshape(())
    axis = node.attributes.get_int("axis", 1) % rank
    return operand.reshape([-1 if i == axis else 1 for i in range(rank)])


def operands(node: ir.Node, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and zero point, in a shape that broadcasts."""
    tensors = [value.const_value for value in node.inputs[1:3] if value is not None]
    parts = [np.asarray(tensor.numpy(), np.float32) for tensor in tensors if tensor is not None]
    if not tensors or len(parts) < len(tensors):
        raise refusal(node, "a scale or zero point is computed")
    scale, zero = parts[0], parts[1] if len(parts) > 1 else np.zeros_like(parts[0])
    return _along(node, scale, rank), _along(node, zero, rank)


def dequantized(node: ir.Node, array: np.ndarray) -> np.ndarray:
    """Return the result of a DequantizeLinear for a constant."""
    scale, zero = operands(node, array.ndim)
    return np.asarray((array.astype(np.float32) - zero) * scale, np.float32)


def quantized(node: ir.Node, array: np.ndarray) -> np.ndarray:
    """Return the result of a QuantizeLinear for a constant."""
    scale, zero = operands(node, array.ndim)
    kind = np.iinfo(rounded_type(node))
    whole = np.round(array.astype(np.float32) / scale) + zero
    return np.asarray(np.clip(whole, *number_range(node)).astype(kind.dtype))
