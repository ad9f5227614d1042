"""Residuals that may lose elements, and their codecs (Ma et al., arXiv:2503.20354; Chen et al., arXiv:2202.13808).

A layer here is a trained weight: its gradient reads the layer's cached input.  A residual may lose elements if every
gradient is a polynomial in it.  The input of a nonlinear function (the derivative of a GELU) stays whole, as int8.  A
divisor stays dense: eight bits round a small one to 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.joint import Joint
from ttac.passes.graph.keys import LAYER
from ttac.passes.graph.shapes import sample_size
from ttac.passes.operators.random_numbers import Numbers
from ttac.passes.plan.codecs import CODECS, Codec
from ttac.passes.plan.codecs.codec import LEAST_ENCODED_BYTES
from ttac.passes.plan.decisions import Decide, Decision, KeepRatios, Plan, divides_by, keep_as, nbytes
from ttac.passes.plan.needs_gradient import needs_gradient

KEEP = "keep.ratios"
"""State: the keep ratio of each layer."""
DRAWN = "keep.numbers"
"""State: the random numbers that draw the kept parts of all layers."""
STRETCH = 1 << 16
"""Random numbers of a layer in a step: more than it has channels."""
# Operators whose outputs are sums of products of their inputs.
POLYNOMIAL = frozenset(
    "Add Sub Mul Neg Sum Identity Reshape Transpose Squeeze Unsqueeze Flatten Slice Pad Concat Split Gather Expand "
    "ReduceSum ReduceMean GlobalAveragePool AveragePool MatMul Gemm Einsum Conv ConvTranspose ChannelDot ChannelSum "
    "ChannelAffine Along ConvWeightGrad ConvInputGrad Masked BatchNormalization".split()
)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A trained weight.

    Attributes:
        parameter: name of the weight, `stem.bn.scale`; gradient: the value of its gradient.
        labels: names of the layer in the metadata of nodes; elements: of its cached input, per sample.
        encoded: part -> name of the forward's output, for the cached input if a codec keeps a part of it.
    """

    parameter: str
    gradient: str
    labels: frozenset[str]
    elements: int
    encoded: Mapping[str, str] = field(default_factory=dict)


def layers_of(joint: Joint) -> list[Layer]:
    """The trained weights of a joint graph, in its order, without biases: the gradient of a bias reads no input."""
    backward = set(joint.backward)
    layers = []
    for parameter, gradient in zip(joint.parameters, joint.gradients, strict=True):
        uses = [use for use in parameter.value.uses() if use.node not in backward]
        weighing = [use for use in uses if use.idx == 1 or use.node.op_type == "Mul"]
        if not weighing:
            continue
        labels = frozenset(use.node.metadata_props.get(LAYER) or str(use.node.name) for use in weighing)
        cached = [v for use in weighing for v in use.node.inputs[:2] if v is not None and v is not parameter.value]
        elements = max(sample_size(v.shape) for v in cached if v.shape is not None)
        layers.append(Layer(parameter=parameter.name, gradient=str(gradient.name), labels=labels, elements=elements))
    return layers


def with_encoded(layers: Sequence[Layer], plan: Plan) -> list[Layer]:
    """The layers with the names of their encoded inputs in the plan."""
    rows = {i: row for row in plan.decisions for i in row.layers}
    return [
        replace(layer, encoded=CODECS[rows[i].how].names(rows[i].value)) if i in rows else layer
        for i, layer in enumerate(layers)
    ]


def equal_ratios(layers: Sequence[Layer], codec: Codec, keep: float, *, moves: bool) -> KeepRatios:
    """The keep ratio `keep` for all layers; if the ratios move, 1 until a step measures the layers."""
    ratios = np.full(len(layers), 1.0 if moves else keep, np.float32)
    return KeepRatios(KEEP, ratios, moves, DRAWN if codec.draws else "")


def drawn(numbers: Numbers, layer: int, count: int) -> ir.Value:
    """The first `count` random numbers of a layer in this step, float32 [count]; each layer has its own stretch."""
    return numbers.many(layer * STRETCH, count)


def keep_parts(joint: Joint, layers: Sequence[Layer], codec: Codec, ratio: float, batch: int) -> Decide:
    """The decision that keeps at most `ratio` of the residuals of `layers` by `codec`, and others by `codec.others`."""
    dependent = needs_gradient(joint.backward)
    sizes = {parameter.name: parameter.initial.size for parameter in joint.parameters}

    def decide(value: ir.Value, half: Set[ir.Node]) -> Decision:
        least = codec.least_bytes if value.dtype == ir.DataType.FLOAT else LEAST_ENCODED_BYTES
        # An output leaves the forward dense in any case.
        if nbytes(value, batch) < least or value.is_graph_output():
            return keep_as(value, "dense", batch)
        if value.dtype == ir.DataType.BOOL:
            return keep_as(value, "bits", batch)
        if value.dtype != ir.DataType.FLOAT:
            return keep_as(value, "dense", batch)
        readers, polynomial, divides = _readers(value, half, dependent)
        if divides:
            return keep_as(value, "dense", batch, "a gradient divides by it")
        if not polynomial:
            return keep_as(value, codec.others, batch, "a nonlinear derivative reads it")
        labels = {node.metadata_props.get(LAYER, "") for node in readers}
        governed = tuple(i for i, layer in enumerate(layers) if labels & layer.labels)
        shared = codec.alone and not all(labels <= layers[i].labels for i in governed)
        if not governed or shared or not codec.takes(value, [sizes[layers[i].parameter] for i in governed]):
            return keep_as(value, codec.others, batch)
        row = keep_as(value, codec.name, batch, f"input of {layers[governed[0]].parameter.rpartition('.')[0]}", ratio)
        return replace(row, layers=governed)

    return decide


def _readers(value: ir.Value, half: Set[ir.Node], dependent: Set[ir.Node]) -> tuple[set[ir.Node], bool, bool]:
    """The first gradient nodes that read `value` or its recomputed readers; are all polynomial; does one divide.

    A gradient is linear in its input gradients, so no node after the first gradient node matters.
    """
    readers: set[ir.Node] = set()
    pending, polynomial, divides = [value], True, False
    while pending:
        for use in pending.pop().uses():
            if use.node in half and use.node.op_type != "Shape":
                divides |= divides_by(use.node, use.idx)
                if use.node in readers:
                    continue
                readers.add(use.node)
                polynomial = polynomial and use.node.op_type in POLYNOMIAL
                if use.node not in dependent:
                    pending += use.node.outputs
    return readers & dependent, polynomial, divides
