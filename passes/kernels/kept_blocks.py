"""Saves of the codec `blocks`: one node for the kept blocks, their scales and places, and the means of all blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ttac.passes.graph.match import array_of
from ttac.passes.graph.shapes import dims
from ttac.passes.kernels.expected import expected
from ttac.passes.kernels.linked_graphs import LinkedGraphs, Type
from ttac.passes.kernels.terms import BLOCKS, Terms
from ttac.passes.plan.codecs.block_layout import block_of
from ttac.passes.plan.codecs.blocks import encode
from ttac.passes.plan.codecs.codec import KeepRatio

PARTS = ("values", "scale", "places", "mean", "single")
"""Tensors of the codec in the order of `Encoded`."""


@dataclass(frozen=True)
class Saved:
    """A saved value, and the tensors of the codec by their names in `PARTS`."""

    x: ir.Value
    parts: Mapping[str, ir.Value]


def fuse_saves(graphs: LinkedGraphs) -> list[Saved]:
    """Replace every save of a map [N, C, H, W] by the codec `blocks`; return the saved values."""
    return [found for node in list(graphs.nodes("QuantizeLinear")) if (found := _fuse(graphs, node)) is not None]


def _fuse(graphs: LinkedGraphs, node: ir.Node) -> Saved | None:
    gathered = graphs.made_by(node.inputs[0], "Gather")
    matrix = graphs.made_by(gathered.inputs[0], "Reshape") if gathered is not None else None
    if gathered is None or matrix is None or gathered.inputs[1] is None:
        return None
    x, places = matrix.inputs[0], gathered.inputs[1]
    mean = _reader(graphs, matrix.outputs[0], "ReduceMean")
    own, column = _ratio(graphs, places), _reader(graphs, places, "Unsqueeze")
    single = _single(graphs, places)
    if x is None or len(dims(x)) != 4 or not block_of(x) or own is None or None in (mean, column, single):
        return None
    scale, values = node.inputs[1], node.outputs[0]
    assert scale is not None and mean is not None and column is not None and single is not None
    terms = Terms(BLOCKS)
    wanted = _encoded(terms, x, own)
    atoms = {x: terms.term("x"), graphs.source(own): terms.term("own")}
    if [terms.of(graphs, value, atoms) for value in (values, scale, column, mean)] != wanted:  # type: ignore[arg-type]
        return None
    types: list[Type | None] = [
        (ir.DataType.INT8, [f"{values.name}.kept", block_of(x)]),
        (ir.DataType.FLOAT, [f"{values.name}.kept"]),
        (ir.DataType.INT64, [f"{values.name}.kept"]),
        (ir.DataType.FLOAT, dims(mean)),
    ]
    entries = _entries(graphs, own)
    if entries is None:
        return None
    ratios, layers = entries
    made = graphs.insert(node, "KeepBlocks", [x, ratios], types, size=block_of(x), layers=layers)
    for old, new in zip((values, scale, places, mean), made, strict=True):
        graphs.replace(old, new)
    return Saved(x, dict(zip(PARTS, (made[0], made[1], column, made[3], single), strict=True)))


def _reader(graphs: LinkedGraphs, value: ir.Value, op_type: str) -> ir.Value | None:
    return next((node.outputs[0] for node in graphs.readers(value) if node.op_type == op_type), None)


def _ratio(graphs: LinkedGraphs, places: ir.Value) -> ir.Value | None:
    """The keep ratio, a scalar, in the formula of the places; None for another formula."""
    value: ir.Value | None = places
    for op_type, index in (("Add", 0), ("Div", 1), ("Max", 0), ("Cast", 0), ("Floor", 0), ("Mul", 1)):
        node = graphs.made_by(value, op_type)
        value = node.inputs[index] if node is not None else None
    return value


def _entries(graphs: LinkedGraphs, own: ir.Value) -> tuple[ir.Value, list[int]] | None:
    """The vector of keep ratios, and the layers in it of which `own` is the largest; None for another computation.

    The node reads the vector.  The engine would merge the Gathers of all entries into one late Split, and so keep all
    saved values until then.
    """
    if array_of(own) is not None:
        return own, [0]
    last = graphs.made_by(own, "Squeeze", "ReduceMax")
    gathered = graphs.made_by(last.inputs[0], "Gather") if last is not None else None
    layers = array_of(gathered.inputs[1]) if gathered is not None else None
    if gathered is None or layers is None or gathered.inputs[0] is None or len(dims(gathered.inputs[0])) != 1:
        return None
    return gathered.inputs[0], [int(layer) for layer in layers.reshape(-1)]


def _single(graphs: LinkedGraphs, places: ir.Value) -> ir.Value | None:
    """The number of blocks that a gradient reads element by element: their count times 0 or 1."""
    shape = _reader(graphs, places, "Shape")
    return _reader(graphs, shape, "Mul") if shape is not None else None


def _encoded(terms: Terms, x: ir.Value, own: ir.Value) -> list[int]:
    """The numbers of values, scale, places and mean."""
    return expected(
        terms, {"x": x, "own": own}, lambda op, x, own: list(encode(op, x, KeepRatio(own, own)))[: len(PARTS) - 1]
    )
