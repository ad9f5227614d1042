"""ttac operators that keep a mask as one bit per element, exact for every size.

Each sample's bits have their own bytes. Costs on onnxruntime 1.19 with one thread, as multiples of a float Relu on as
many elements. Packing: a product with powers of two 0.5-1.3, one byte at a time 3-4. Unpacking: a table of all bytes
2.4-4, shifts 13, masks 7-11, a table of all pairs of bytes 10. Unpacking to floats takes no longer than to bools, and
saves the cast.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import Types, composite
from ttac.passes.graph.shapes import dims

BYTES_AT_ONCE = 8
"""Bytes that one row of the packing product gives.

[rows, 64] times [64, 8] is four times faster than [rows, 8] times [8, 1].
"""
UINT8, INT32 = int(ir.DataType.UINT8), int(ir.DataType.INT32)


def _rows(mask: ir.Value | None) -> tuple[int | str, int]:
    """Return rows and elements per row of the mask as a matrix: one row per sample, or one row without a batch axis."""
    sizes = dims(mask)
    if sizes and isinstance(sizes[0], str):
        return sizes[0], math.prod(int(size) for size in sizes[1:])
    return 1, math.prod(int(size) for size in sizes)


def _packed_type(node: ir.Node) -> Types:
    rows, count = _rows(node.inputs[0])
    return [(ir.DataType.UINT8, ir.Shape([rows, -(-count // 8)]))]


@composite("PackBits", _packed_type)
def pack_bits(op: Builder, node: ir.Node) -> ir.Value:
    """Mask, bool [N, ...] -> uint8 [N, ceil(elements of a sample / 8)]; the first element is the lowest bit."""
    (mask,) = node.inputs
    rows, count = _rows(mask)
    bits = op.Cast(op.Flatten(mask, axis=1 if isinstance(rows, str) else 0), to=UINT8)
    if missing := -count % 8:
        bits = op.Pad(bits, [0, missing], np.array(0, np.uint8), [1])
    size = -(-count // 8)
    together = math.gcd(size, BYTES_AT_ONCE)
    powers = np.kron(np.eye(together, dtype=np.uint8), 2 ** np.arange(8, dtype=np.uint8)[:, None])
    sums = op.MatMulInteger(op.Reshape(bits, [-1, 8 * together]), powers)
    return op.Reshape(op.Cast(sums, to=UINT8), [-1, size])


def _mask_type(node: ir.Node) -> Types:
    symbol = dims(node.inputs[0])[0]
    shape = ir.Shape([symbol if size < 0 else size for size in node.attributes.get_ints("shape")])
    return [(ir.DataType(node.attributes.get_int("to", int(ir.DataType.BOOL))), shape)]


@composite("UnpackBits", _mask_type)
def unpack_bits(op: Builder, node: ir.Node) -> ir.Value:
    """The inverse of PackBits.

    Attributes: `shape` of the mask, with -1 for a batch that only the run knows; `to`, the type of its elements, bool
    if absent.
    """
    (packed,) = node.inputs
    element = ir.DataType(node.attributes.get_int("to", int(ir.DataType.BOOL))).numpy()
    shape = list(node.attributes.get_ints("shape"))
    count, size = math.prod(n for n in shape if n >= 0), int(dims(packed)[1])
    every_byte = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(element)
    bits = op.Reshape(op.Gather(every_byte, op.Cast(packed, to=INT32)), [-1, 8 * size])
    if 8 * size != count:
        bits = op.Slice(bits, [0], [count], [1])
    return op.Reshape(bits, shape)
