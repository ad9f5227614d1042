"""Saved maps that a gradient reads whole: one node writes 8-bit rows, one node reads rows or kept blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from ttac.passes.graph.shapes import dims
from ttac.passes.kernels.expected import expected
from ttac.passes.kernels.kept_blocks import PARTS, Saved
from ttac.passes.kernels.linked_graphs import LinkedGraphs, Type
from ttac.passes.kernels.norm_forward import Norm
from ttac.passes.kernels.terms import BLOCKS, Terms
from ttac.passes.plan.codecs import blocks, int8
from ttac.passes.plan.codecs.block_layout import block_of

ROWS = BLOCKS | frozenset("Min ReduceMin Round Expand".split())
"""Operators of the codec `int8` and of the readers of both codecs."""

Decoded = dict[ir.Value, ir.Value]
"""A saved value -> the value that a gradient reads in its place."""


def fuse_whole_saves(graphs: LinkedGraphs, saved: Sequence[Saved]) -> Decoded:
    """Replace every save of a map [N, C, H, W] in 8-bit rows, and every read of whole maps; return the reads."""
    found: Decoded = {}
    for node in list(graphs.nodes("QuantizeLinear")):
        found |= _fuse_rows(graphs, node)
    for each in saved:
        _fuse_blocks(graphs, each)
    return found


def decoded_norms(norms: Sequence[Norm], decoded: Decoded) -> list[Norm]:
    """The norms with the input that their gradient reads."""
    return [replace(norm, x=decoded.get(norm.x, norm.x)) for norm in norms]


def _fuse_rows(graphs: LinkedGraphs, node: ir.Node) -> Decoded:
    rows = graphs.made_by(node.inputs[0], "Reshape")
    x = rows.inputs[0] if rows is not None else None
    if x is None or x.shape is None or len(x.shape) != 4 or x.dtype != ir.DataType.FLOAT or len(node.inputs) != 3:
        return {}
    values, (scale, zero) = node.outputs[0], node.inputs[1:3]
    assert scale is not None and zero is not None
    terms = Terms(ROWS)
    wanted = expected(terms, {"x": x}, lambda op, x: list(int8.encode(op, x, None)))
    if [terms.of(graphs, value, {x: terms.term("x")}) for value in (values, scale, zero)] != wanted:
        return {}
    reads = _reads(graphs, x, (values, scale, zero))
    if reads is None:
        return {}
    count: list[int | str] = [f"{values.name}.rows"]
    types: list[Type | None] = [
        (ir.DataType.UINT8, dims(x)),
        (ir.DataType.FLOAT, count),
        (ir.DataType.UINT8, count),
    ]
    made = graphs.insert(node, "QuantizeRows", [x], types)
    for old, new in zip((values, scale, zero), made, strict=True):
        graphs.replace(old, new)
    restored = [_restore(graphs, read, "DequantizeRows", made) for read in reads]
    return {x: restored[0]} if restored else {}


def _reads(graphs: LinkedGraphs, x: ir.Value, parts: Sequence[ir.Value]) -> list[ir.Node] | None:
    """The last nodes of all readers of the saved rows; None if one of them reads them in another way."""
    found: list[ir.Node] = []
    for reader in graphs.readers(parts[0]):
        ends = graphs.readers(reader.outputs[0])
        if len(ends) != 1 or reader.op_type != "DequantizeLinear" or ends[0].op_type != "Reshape":
            return None
        terms = Terms(ROWS)
        operands = {**dict(zip(("values", "scale", "zero"), parts, strict=True)), "like": x}
        (wanted,) = expected(terms, operands, lambda op, *v: [int8.decode(op, v[:3], v[3])])
        atoms = {graphs.source(value): terms.term(name) for name, value in operands.items()}
        if terms.of(graphs, ends[0].outputs[0], atoms) != wanted:  # type: ignore[arg-type]
            return None
        found.append(ends[0])
    return found


def _fuse_blocks(graphs: LinkedGraphs, each: Saved) -> None:
    """Replace every read of a whole map from kept blocks and the means of the others."""
    terms = Terms(ROWS)
    operands = {**each.parts, "x": each.x}
    (wanted,) = expected(terms, operands, lambda op, *v: [blocks.decode(op, v[: len(PARTS)], v[len(PARTS)])])
    atoms = {graphs.source(value): terms.term(name) for name, value in operands.items()}
    parts = [each.parts[name] for name in PARTS[:4]]
    for scatter in list(graphs.nodes("ScatterND")):
        if graphs.source(scatter.inputs[1]) is not graphs.source(parts[2]):
            continue
        for end in graphs.readers(scatter.outputs[0]):
            if end.op_type == "Reshape" and terms.of(graphs, end.outputs[0], atoms) == wanted:  # type: ignore[arg-type]
                sizes = [int(size) for size in dims(each.x)[1:]]
                _restore(graphs, end, "RestoreBlocks", parts, size=block_of(each.x), sizes=sizes)


def _restore(
    graphs: LinkedGraphs, end: ir.Node, op_type: str, parts: Sequence[ir.Value], **more: int | list[int]
) -> ir.Value:
    old = end.outputs[0]
    (made,) = graphs.insert(end, op_type, list(parts), [(ir.DataType.FLOAT, dims(old))], **more)
    node = made.producer()
    assert node is not None
    for port, part in zip(node.inputs, parts, strict=True):
        if port is not None and port is not part:
            port.shape = part.shape  # an earlier graph may have had the rows as a matrix
    graphs.replace(old, made)
    return made
