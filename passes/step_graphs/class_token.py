"""The class token of a vision transformer: its features after each layer, and their distance from the source's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError, UsageError
from ttac.passes.differentiate.heads import scores_of
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.match import array_of
from ttac.passes.graph.places import node_place
from ttac.passes.graph.shapes import dims
from ttac.passes.norms import calibration
from ttac.passes.norms.norm_sites import NormSite, find_norms
from ttac.passes.step_graphs.context import Subject
from ttac.passes.step_graphs.linear_head import ROUNDINGS, classified, last_linear, roundings

PASSED = ROUNDINGS | {"Dropout", "Flatten", "Identity", "LayerNormalization", "Reshape", "Squeeze"}
"""Operators between the class token and the classifier."""
MIXES = frozenset({"Softmax", "Attention"})
"""Operators that mark attention."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of a model's layers.

    Attributes:
        layers: features of each layer [N, D]; the last are those that the classifier reads, before they are rounded to
            8 bits.
        scores: the scores [N, classes]; classifier: the linear layer that makes them.
    """

    layers: Sequence[ir.Value]
    scores: ir.Value
    classifier: ir.Node

    @property
    def width(self) -> int:
        """Number of features that the classifier reads."""
        return int(dims(self.layers[-1])[1])

    def classified(self, op: Builder, features: ir.Value) -> ir.Value:
        """The scores of other `features` [N, D], rounded as the classifier's are."""
        for node in reversed(roundings(self.classifier)):
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            features = op.node(node.op_type, [features, *node.inputs[1:]], attributes)
        return classified(op, self.classifier, self.scores, features)


@dataclass(frozen=True, kw_only=True)
class ClassToken(Features):
    """The class token of a model; its layers are the token behind the first norm of each layer but the first.

    Attributes:
        tokens: all tokens [N, tokens, D] before the first layer, the class token first.
    """

    tokens: ir.Value


@dataclass(frozen=True)
class SourceFeatures:
    """Mean and unbiased deviation of the features of the source, float32 [layers * D] each."""

    mean: np.ndarray
    deviation: np.ndarray


def find_class_token(op: Builder, subject: Subject, purpose: str, hint: str) -> ClassToken:
    """The class token of `subject.model`; nodes that read features are added to the graph.

    Raises UnsupportedError for a model without one; `purpose` begins the message, `hint` names the way out.
    """
    scores = scores_of(op, subject.model.graph.outputs[0])
    classifier = last_linear(scores, "follow")
    token = class_token(op, scores, classifier, find_norms(subject.model).sites)
    if token is None:
        raise UnsupportedError(
            f"{purpose}, and no class token makes the predictions of this model",
            where=node_place(classifier),
            hint=hint,
        )
    return token


def class_token(op: Builder, scores: ir.Value, classifier: ir.Node, norms: Sequence[NormSite]) -> ClassToken | None:
    """The class token that makes the `scores`, by all `norms` of the model; None if there is none."""
    stream = _token_stream(classifier)
    shape = dims(stream) if stream is not None else []
    sites = [site for site in norms if dims(site.node.inputs[0]) == shape]
    attending = attending_norms(sites)
    if len(shape) != 3 or len(attending) < 2:
        return None
    tokens = sites[0].node.inputs[0]
    assert tokens is not None
    layers = [op.Gather(site.y, 0, axis=1) for site in attending[1:]]
    last = classifier_features(op, classifier)
    return ClassToken(tokens=tokens, layers=[*layers, last], scores=scores, classifier=classifier)


def classifier_features(op: Builder, classifier: ir.Node) -> ir.Value:
    """The features [N, D] that the classifier reads, before they are rounded to 8 bits."""
    rounded = roundings(classifier)
    features = (rounded[-1] if rounded else classifier).inputs[0]
    assert features is not None
    return features if len(dims(features)) == 2 else op.Flatten(features, axis=1)


def attending_norms(sites: Sequence[NormSite]) -> list[NormSite]:
    """The sites in front of attention: each begins a layer of a transformer."""
    return [site for site in sites if _attends(site, sites)]


def _token_stream(classifier: ir.Node) -> ir.Value | None:
    """The tokens [N, tokens, D] whose first the classifier reads; None if there are none."""
    value = classifier.inputs[0]
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in PASSED:
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    if node is None or node.op_type not in ("Gather", "Slice"):
        return None
    taken = [array_of(each) for each in node.inputs[1:]]
    if any(each is None for each in taken):
        return None
    if node.op_type == "Gather":
        first = node.attributes.get_int("axis", 0) == 1 and taken[0] is not None and not taken[0].any()
    else:
        first = [each.tolist() for each in taken[:3] if each is not None] == [[0], [1], [1]]
    return node.inputs[0] if first else None


def _attends(site: NormSite, sites: Sequence[NormSite]) -> bool:
    """Whether attention reads the norm's output before another norm of the tokens does."""
    ends = {other.node for other in sites}
    pending, seen = [site.y], set[ir.Node]()
    while pending:
        nodes = {use.node for use in pending.pop().uses()} - seen - ends
        if any(node.op_type in MIXES for node in nodes):
            return True
        seen |= nodes
        pending += [value for node in nodes for value in node.outputs]
    return False


def source_features(subject: Subject, layers: Sequence[ir.Value]) -> SourceFeatures:
    """The features of the calibration samples; the model must not be changed yet.

    Raises UsageError without calibration samples.
    """
    samples = subject.samples
    if samples is None:
        raise UsageError(
            "the features of the source are unknown without source samples",
            where="`--calibration`",
            hint="give unlabelled source samples, `--calibration PATH`; 32 suffice",
        )
    found = calibration.statistics(subject.model, samples, layers, subject.batch)
    count = len(samples)
    means, variances = zip(*(found[str(value.name)] for value in layers), strict=True)
    unbiased = np.concatenate(variances).astype(np.float64) * count / max(1, count - 1)
    return SourceFeatures(np.concatenate(means), np.sqrt(unbiased).astype(np.float32))


def moments(op: Builder, layers: Sequence[ir.Value], size: ir.Value) -> tuple[Any, Any]:
    """Mean and unbiased deviation of the features of `size` samples, [layers * D] each; one sample deviates by 0."""
    features = op.Concat(*layers, axis=1)
    mean = op.ReduceMean(features, [0], keepdims=0)
    distance = op.Sub(features, mean)
    squares = op.ReduceSum(op.Mul(distance, distance), [0], keepdims=0)
    return mean, op.Sqrt(op.Div(squares, op.Max(op.Sub(size, 1.0), 1.0)))


def squared_distance(op: Builder, value: ir.Value, source: np.ndarray) -> ir.Value:
    """The sum of the squared differences, a scalar."""
    return op.ReduceSumSquare(op.Sub(value, source), keepdims=0)
