"""Masks with one bit an element, which a norm writes and the gradient of the norm reads.

Methods with sparse saves pack their masks in the portable graphs.  Others keep a byte an element there, and
`pack_masks` packs it where both nodes are of the library.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

import ttac.passes.operators.bitmask  # noqa: F401  (registers PackBits and UnpackBits)
from ttac.passes.graph.shapes import dims
from ttac.passes.kernels.expected import expected
from ttac.passes.kernels.linked_graphs import BITS_OF_BACKWARD, WHOLE_BLOCK, LinkedGraphs, Type
from ttac.passes.kernels.terms import BITS, Terms
from ttac.passes.plan.codecs.codec import elements_of, open_shape

FLOAT = int(ir.DataType.FLOAT)
MASK_OF_FORWARD, BITS_OF_FORWARD = 3, 4
"""Numbers of the outputs of NormForward."""
MASK_OF_BACKWARD = 6
"""Number of the input `mask` of NormBackward."""


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


def pack_masks(graphs: LinkedGraphs, outside: Collection[str]) -> None:
    """Keep the mask of a norm in bits, where gradients of norms alone read it; `outside` are names read elsewhere."""
    for norm in graphs.kernels("NormForward"):
        mask = norm.outputs[MASK_OF_FORWARD] if len(norm.outputs) > MASK_OF_FORWARD else None
        if mask is None or not mask.name or mask.name in outside or not _is_whole(mask):
            continue
        readers = graphs.readers(mask)
        if readers and all(_reads_mask(graphs, reader, mask) for reader in readers):
            types = [*_types(norm)[:MASK_OF_FORWARD], None, (ir.DataType.UINT8, [dims(mask)[0], f"{mask.name}.bytes"])]
            bits = _respelled(graphs, norm, norm.inputs, types)[BITS_OF_FORWARD]
            for reader in readers:
                inputs = [*reader.inputs, *[None] * BITS_OF_BACKWARD][: max(len(reader.inputs), BITS_OF_BACKWARD + 1)]
                inputs[MASK_OF_BACKWARD], inputs[BITS_OF_BACKWARD] = None, bits
                _respelled(graphs, reader, inputs, _types(reader))


def _is_whole(mask: ir.Value) -> bool:
    """Whether the mask has no padding in blocks of any size, which bits do not know."""
    channels = dims(mask)[1]
    return isinstance(channels, int) and channels % WHOLE_BLOCK == 0


def _reads_mask(graphs: LinkedGraphs, node: ir.Node, mask: ir.Value) -> bool:
    """Whether `node` is the gradient of a norm, which reads the mask as its mask."""
    places = [place for place, value in enumerate(node.inputs) if graphs.source(value) is mask]
    return node.op_type == "NormBackward" and bool(node.domain) and places == [MASK_OF_BACKWARD]


def _types(node: ir.Node) -> list[Type | None]:
    return [(value.dtype, dims(value)) if value.name and value.dtype else None for value in node.outputs]


def _respelled(
    graphs: LinkedGraphs, node: ir.Node, inputs: Sequence[ir.Value | None], types: Sequence[Type | None]
) -> list[ir.Value]:
    """Put a node with other inputs and outputs in the place of `node`; return its outputs."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    made = graphs.insert(node, node.op_type, inputs, types, **attributes)
    for old, new, type_ in zip(node.outputs, made, types, strict=False):
        if type_ is not None:
            graphs.replace(old, new)
    return made
