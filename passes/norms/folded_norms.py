"""Find the layers that lost their norm to the exporter, or give the reason why a layer gets no norm.

A layer is a convolution, or a linear layer on rows (Gemm).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.layer_names import CONVOLUTIONS, FOLDABLE, FOLDED, unique

AFTERTHOUGHTS = frozenset(
    "AveragePool Clip Flatten GlobalAveragePool GlobalMaxPool LogSoftmax ReduceMean Relu Reshape Resize Sigmoid "
    "Softmax Squeeze Transpose".split()
)
"""Operators without parameters that may stand between the last layer and the output."""
WORDS = {"Conv": "convolution", "ConvTranspose": "convolution", "Gemm": "linear layer"}
"""Words for the layers, by operator."""


WHOLE_NUMBERS = {"ConvInteger": "convolution", "MatMulInteger": "linear layer"}
"""Words for the layers of whole numbers, by operator: a file that rounds at run time holds them."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer that may get a norm behind it, or a scale and a shift that were a norm.

    Attributes:
        name: of the norm that was folded into it, where the file names it, else of the layer.
        value: the value that the norm normalises, [N, C, ...]: the layer's output, or the operand of the scale.
    """

    name: str
    node: ir.Node
    value: ir.Value
    because: str


@dataclass(frozen=True, eq=False)
class Rejection:
    """A node that gets no norm or is no norm, with the reason."""

    name: str
    kind: str
    node: ir.Node
    because: str


def folded_layers(model: ir.Model, normed: dict[int, str], marked: bool) -> tuple[list[Candidate], list[Rejection]]:
    """Return the layers that may get a norm, and those that get none, each with the reason.

    Args:
        normed: names of sites, by the id of the value that the site reads.
        marked: whether the exporter marked the nodes that it folded a norm into.
    """
    names = {node.metadata_props.get(LAYER, "") for node in model.graph}
    candidates, skipped = [], []
    for node in [node for node in model.graph if node.op_type in FOLDABLE]:
        layer, norm = node.metadata_props.get(LAYER) or str(node.name), node.metadata_props.get(FOLDED, "")
        reason = _reason_against(node, normed, marked)
        if reason:
            skipped.append(Rejection(layer, WORDS[node.op_type], node, reason))
            continue
        name = unique(norm, names) if norm not in ("", "?") else layer
        names.add(name)
        candidates.append(Candidate(name, node, node.outputs[0], _reason_for(norm)))
    for node in [node for node in model.graph if node.op_type in WHOLE_NUMBERS]:
        layer = node.metadata_props.get(LAYER) or str(node.name)
        skipped.append(Rejection(layer, WHOLE_NUMBERS[node.op_type], node, "it multiplies whole numbers"))
    return candidates, skipped


def _reason_for(norm: str) -> str:
    if norm == "?":
        return "the exporter renamed its kernel and bias, which is its habit when it folds a norm"
    return f"the exporter folded `{norm}` into it" if norm else "it has a bias and no norm behind it"


def _reason_against(node: ir.Node, normed: dict[int, str], marked: bool) -> str:
    """Return why a layer gets no norm; an empty string if it may get one."""
    y = node.outputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if id(y) in normed:
        return f"followed by `{normed[id(y)]}`"
    if bias is None and not node.metadata_props.get(FOLDED):  # exporters drop the bias of zeros of an untrained network
        return "it has no bias, which a folded norm always leaves behind"
    if (bias is not None and bias.const_value is None) or node.inputs[1] is None or node.inputs[1].const_value is None:
        return "its kernel or bias is computed"
    if y.is_graph_output():
        return "it gives the output"
    if y.shape is None or not all(isinstance(size, int) for size in y.shape[1:]):
        return f"the shape of its output is {y.shape}"
    if node.op_type == "Gemm" and (node.attributes.get_int("transA", 0) != 0 or _is_scaled(node)):
        return "its input is transposed, or its kernel or bias is scaled"
    if node.op_type in CONVOLUTIONS and all(size == 1 for size in y.shape[2:]):
        return "it gives one value per channel (squeeze-and-excite, or a classifier)"
    if FOLDED in node.metadata_props:
        return ""
    if marked:
        return "it kept its own bias, and the exporter marked the layers it folded a norm into"
    return "only operators without parameters stand between it and the output" if _is_last(y) else ""


def _is_scaled(node: ir.Node) -> bool:
    return any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))


def _is_last(value: ir.Value) -> bool:
    while not value.is_graph_output():
        readers = [use.node for use in value.uses()]
        if len(readers) != 1 or readers[0].op_type not in AFTERTHOUGHTS:
            return False
        value = readers[0].outputs[0]
    return True
