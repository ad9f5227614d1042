"""Facts of a whole model that help to read its output: whether it reads text, its mask of padding, its boxes."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.differentiate.heads import Head
from ttac.passes.graph.shapes import dims
from ttac.passes.load.model_file import KEPT
from ttac.samples.box_outputs import BoxOutput, box_outputs

RECURRENT = frozenset({"LSTM", "GRU", "RNN", *(name for _, name in KEPT)})
"""Operators of recurrent layers, those of onnxruntime included."""


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
    return _takes_images(model) and any(node.op_type in RECURRENT for node in model.graph)


def box_output(model: ir.Model, scores: ir.Value) -> BoxOutput | None:
    """Return the only other output of a model of images that may hold the boxes of `scores` [N, .] or [N, ., .]."""
    shape = dims(scores)
    if len(shape) not in (2, 3) or not _takes_images(model):
        return None
    found = list[BoxOutput]()
    for value in model.graph.outputs:
        sizes = dims(value)
        if value is not scores and value.dtype == scores.dtype and sizes[:1] == shape[:1]:
            readings = box_outputs(str(value.name), sizes)
            found += [reading for reading in readings if reading.boxes in shape[1:]][:1]
    return found[0] if len(found) == 1 else None


def _takes_images(model: ir.Model) -> bool:
    return any(len(dims(value)) == 4 for value in model.graph.inputs)
