"""Residuals that may lose elements, and their codecs (Ma et al., arXiv:2503.20354; Chen et al., arXiv:2202.13808).

A layer here is a trained weight: its gradient reads the layer's cached input.  A residual may lose elements if every
gradient is a polynomial in it.  The input of a nonlinear function (the derivative of a GELU) stays whole, as int8.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.joint import Joint
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.shapes import sample_size
from ttac.passes.plan.codecs.block_layout import block_of
from ttac.passes.plan.decisions import LEAST_ENCODED_BYTES, Decide, Decision, KeepRatios, keep_as, nbytes
from ttac.passes.plan.needs_gradient import needs_gradient

KEEP = "keep.ratios"
"""State: the share that each layer keeps."""
# Operators whose outputs are sums of products of their inputs.
POLYNOMIAL = frozenset(
    "Add Sub Mul Neg Sum Identity Reshape Transpose Squeeze Unsqueeze Flatten Slice Pad Concat Split Gather Expand "
    "ReduceSum ReduceMean GlobalAveragePool AveragePool MatMul Gemm Einsum Conv ConvTranspose ChannelDot ChannelSum "
    "ChannelAffine Along ConvWeightGrad ConvInputGrad Masked BatchNormalization".split()
)


@dataclass(frozen=True)
class Layer:
    """A trained weight.

    Attributes:
        parameter: name of the weight, `stem.bn.scale`; gradient: the value of its gradient.
        labels: how the graph's nodes name the layer; elements: of its cached input, per sample.
    """

    parameter: str
    gradient: str
    labels: frozenset[str]
    elements: int


def layers_of(joint: Joint) -> list[Layer]:
    """The trained weights of a joint graph, in its order; biases, whose gradients read no input, are not among them."""
    backward = set(joint.backward)
    found = []
    for parameter, gradient in zip(joint.parameters, joint.gradients, strict=True):
        uses = [use for use in parameter.value.uses() if use.node not in backward]
        weighing = [use for use in uses if use.idx == 1 or use.node.op_type == "Mul"]
        if not weighing:
            continue
        labels = frozenset(use.node.metadata_props.get(LAYER) or str(use.node.name) for use in weighing)
        cached = [v for use in weighing for v in use.node.inputs[:2] if v is not None and v is not parameter.value]
        elements = max(sample_size(v.shape) for v in cached if v.shape is not None)
        found.append(Layer(parameter.name, str(gradient.name), labels, elements))
    return found


def keep_shares(layers: Sequence[Layer], keep: float, *, moves: bool) -> KeepRatios:
    """The same share for all layers; if it `moves`, everything, until a step knows which layers matter."""
    return KeepRatios(KEEP, np.full(len(layers), 1.0 if moves else keep, np.float32), moves)


def keep_a_share(joint: Joint, layers: Sequence[Layer], codec: str, share: float, batch: int) -> Decide:
    """Residuals of `layers` that may lose elements are kept by `codec`, at most `share` of them; the others as int8."""
    late = needs_gradient(joint.backward)

    def decide(value: ir.Value, half: Set[ir.Node]) -> Decision:
        # An output is handed out as it is in any case.
        if nbytes(value, batch) < LEAST_ENCODED_BYTES or value.is_graph_output():
            return keep_as(value, "dense", batch)
        if value.dtype == ir.DataType.BOOL:
            return keep_as(value, "bits", batch)
        if value.dtype != ir.DataType.FLOAT:
            return keep_as(value, "dense", batch)
        readers, polynomial = _readers(value, half, late)
        labels = {node.metadata_props.get(LAYER, "") for node in readers}
        governed = tuple(i for i, layer in enumerate(layers) if labels & layer.labels)
        if not polynomial or not governed or (codec in ("blocks", "levels") and not block_of(value)):
            return keep_as(value, "int8", batch, "" if polynomial else "a slope is computed from it")
        row = keep_as(value, codec, batch, f"input of {layers[governed[0]].parameter.rpartition('.')[0]}", share)
        return replace(row, layers=governed)

    return decide


def _readers(value: ir.Value, half: Set[ir.Node], late: Set[ir.Node]) -> tuple[set[ir.Node], bool]:
    """The first gradient nodes that read `value` or what is computed again from it; whether all of it is polynomial.

    A gradient is linear in the gradients it is made of, so nothing behind the first one matters.
    """
    found: set[ir.Node] = set()
    pending, polynomial = [value], True
    while pending:
        for use in pending.pop().uses():
            if use.node in half and use.node not in found and use.node.op_type != "Shape":
                found.add(use.node)
                polynomial = polynomial and use.node.op_type in POLYNOMIAL
                if use.node not in late:
                    pending += use.node.outputs
    return found & late, polynomial
