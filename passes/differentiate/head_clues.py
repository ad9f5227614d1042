"""Facts of a whole model that help to read its output: whether it reads text, and its mask of padding."""

from __future__ import annotations

import onnx_ir as ir

from ttac.passes.differentiate.heads import Head
from ttac.passes.graph.shapes import dims


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
    images = any(len(dims(value)) == 4 for value in model.graph.inputs)
    return images and any(node.op_type in ("LSTM", "GRU", "RNN") for node in model.graph)
