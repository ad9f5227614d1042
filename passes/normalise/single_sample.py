"""Type a model that works for one sample only: an axis of size 1 is the batch N, which is always 1."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.places import node_place
from ttac.passes.graph.shapes import BATCH
from ttac.passes.normalise.batch_walk import Walk, fixed_batch

SINGLE = "ttac.single"
"""Key of `model.meta`: whether the model takes one sample at a time."""


def type_for_one(model: ir.Model, axes: Mapping[str, int | None]) -> ir.Model:
    """Infer the shapes of `model` for one sample, in place; return the model.

    The first axis of size 1 of each value that depends on the input is written as N.  Since N is always 1, this is true
    of any such axis.  Inputs have N at their axis in `axes`.

    Raises UnsupportedError if a shape stays unknown, or if the first output has no axis of size 1.
    """
    walk = Walk(model, 1, imagined=(1, 1), axes=axes)
    for node in list(model.graph):
        walk.visit(node)
    if walk.unknown:
        node = walk.unknown[0]
        raise UnsupportedError("the shapes cannot be inferred", where=node_place(node))
    for value in [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]:
        sizes = list(value.shape or ())
        place = axes[str(value.name)] if value.is_graph_input() else sizes.index(1) if 1 in sizes else None
        if place is not None:
            value.shape = ir.Shape([BATCH if axis == place else size for axis, size in enumerate(sizes)])
    y = model.graph.outputs[0]
    if BATCH not in [size.value for size in y.shape or () if isinstance(size, ir.SymbolicDim)]:
        raise fixed_batch(f"output `{y.name}`", f"its shape {y.shape} has no axis of the sample", 1)
    return model
