"""Masks with one bit an element, which a norm writes and the gradient of the norm reads."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

import ttac.passes.operators.bitmask  # noqa: F401  (registers PackBits and UnpackBits)
from ttac.passes.graph.shapes import dims
from ttac.passes.kernels.expected import expected
from ttac.passes.kernels.linked_graphs import LinkedGraphs
from ttac.passes.kernels.terms import BITS, Terms
from ttac.passes.plan.codecs.codec import elements_of, open_shape

FLOAT = int(ir.DataType.FLOAT)


def packed_of(graphs: LinkedGraphs, mask: ir.Value) -> ir.Value | None:
    """The output of PackBits(mask), where only PackBits reads the mask."""
    terms = Terms(BITS)
    (wanted,) = expected(terms, {"mask": mask}, lambda op, mask: [op.PackBits(mask)])
    value = mask
    while len(readers := graphs.readers(value)) == 1 and not readers[0].domain:
        value = readers[0].outputs[0]
        if terms.of(graphs, value, {mask: terms.term("mask")}) == wanted:
            return value
    return None


def is_unpacked(graphs: LinkedGraphs, value: ir.Value | None, packed: ir.Value) -> bool:
    """Whether `value` is UnpackBits(packed) as float32."""
    source, terms = graphs.source(value), Terms(BITS)
    if source is None or source.dtype != ir.DataType.FLOAT or not dims(source):
        return False
    shape = open_shape(source)
    bits = ir.Value(name="packed", type=packed.type, shape=ir.Shape([dims(source)[0], -(-elements_of(source) // 8)]))
    (wanted,) = expected(terms, {"packed": bits}, lambda op, packed: [op.UnpackBits(packed, shape=shape, to=FLOAT)])
    return terms.of(graphs, source, {graphs.source(packed): terms.term("packed")}) == wanted  # type: ignore[dict-item]


def read_elsewhere(graphs: LinkedGraphs, masks: Iterable[ir.Value]) -> set[str]:
    """Names of the bit masks that a standard node reads.

    The order of a kernel's bits is that of the memory, so only nodes of the library can read them.
    """
    return {str(mask.name) for mask in masks if any(not node.domain for node in graphs.readers(mask))}
