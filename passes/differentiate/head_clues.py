"""Facts of a whole model that help to read its output: whether it reads text, its mask of padding, its boxes."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.differentiate.heads import BoxOutput, Head
from ttac.passes.graph.shapes import dims

COORDINATES = 4
"""Numbers of a box."""


def padding_mask(model: ir.Model, head: Head) -> str:
    """Return the name of the input that masks the positions of a `dense` head [N, T, C]; empty without one.

    The mask is an input of whole numbers or truth values in the shape of the positions whose name contains `mask`.
    """
    if head.kind != "dense" or len(head.positions) != 2:
        return ""
    for value in model.graph.inputs:
        fits = value.dtype is not None and not value.dtype.is_floating_point() and dims(value) == list(head.positions)
        if fits and "mask" in str(value.name).lower():
            return str(value.name)
    return ""


def reads_text(model: ir.Model) -> bool:
    """Return whether a model reads text: its file lists characters, or it runs a recurrent layer on images."""
    if any(key in model.metadata_props for key in ("character", "characters", "charset", "alphabet")):
        return True
    return _takes_images(model) and any(node.op_type in ("LSTM", "GRU", "RNN") for node in model.graph)


def box_output(model: ir.Model, scores: ir.Value) -> BoxOutput | None:
    """Return the only other output of a model of images that may hold the boxes of `scores`, [N, ., .]; else None."""
    shape = dims(scores)
    if len(shape) != 3 or not _takes_images(model):
        return None
    found = []
    for value in model.graph.outputs:
        sizes = dims(value)
        if value is not scores and value.dtype == scores.dtype and len(sizes) == 3 and sizes[0] == shape[0]:
            counts = [boxes for boxes, four in (sizes[1:], sizes[:0:-1]) if four == COORDINATES and boxes in shape[1:]]
            found += [BoxOutput(str(value.name), count) for count in counts[:1]]
    return found[0] if len(found) == 1 else None


def _takes_images(model: ir.Model) -> bool:
    return any(len(dims(value)) == 4 for value in model.graph.inputs)
