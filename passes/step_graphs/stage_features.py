"""The features of any classifier: its class token behind each layer, or the mean map at the end of each stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from ttac.passes.differentiate.heads import scores_of
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import bind_state, freeze
from ttac.passes.graph.waists import waists
from ttac.passes.lower.lower import lower
from ttac.passes.norms.norm_sites import NormSite, bind_sites, find_norms
from ttac.passes.step_graphs.class_token import (
    Features,
    SourceFeatures,
    class_token,
    classifier_features,
    source_features,
)
from ttac.passes.step_graphs.context import Subject
from ttac.passes.step_graphs.linear_head import last_linear

STAGE = 2
"""Fewest norms of a stage; a stem has one."""


def find_features(op: Builder, subject: Subject) -> Features:
    """The features of `subject.model`, whose norms may be adapted; nodes that read features are added to the graph.

    Raises UnsupportedError unless a linear layer makes the predictions.
    """
    scores = scores_of(op, subject.model.graph.outputs[0])
    classifier = last_linear(scores, "follow")
    token = class_token(op, scores, classifier, bind_sites(find_norms(frozen(subject)).sites, subject.model))
    if token is not None:
        return token
    stages = [op.ReduceMean(value, axes, keepdims=0) for value, axes in _stages(subject)]
    return Features(layers=[*stages, classifier_features(op, classifier)], scores=scores, classifier=classifier)


def adapted_source_features(subject: Subject, layers: Sequence[ir.Value]) -> SourceFeatures:
    """The features of the calibration samples, with the statistics that the method's norms take.

    Raises UsageError without calibration samples.
    """
    model = frozen(subject)
    named = {str(value.name): value for node in model.graph for value in node.outputs}
    outputs = [named[str(value.name)] for value in layers]
    model.graph.outputs[:] = outputs
    return source_features(replace(subject, model=lower(model, subject.target)), outputs)


def frozen(subject: Subject) -> ir.Model:
    """A copy of the model whose adapted state is constant, as it was compiled."""
    copy = subject.model.clone()
    freeze(copy.graph, bind_state(subject.adaptation.state, copy))
    return copy


def _stages(subject: Subject) -> list[tuple[ir.Value, list[int]]]:
    """The last tensor of each resolution that is alone there, but for the last resolution, with its axes of positions.

    The classifier reads the features of the last resolution.
    """
    resolutions: dict[int, list[NormSite]] = {}
    for site in subject.sites:
        resolutions.setdefault(site.spatial, []).append(site)
    last: dict[int, tuple[ir.Value, list[int]]] = {}
    for _, value in waists(subject.model.graph, subject.model.graph.inputs[:1]):
        shape = dims(value)
        known = len(shape) > 2 and all(isinstance(size, int) for size in shape[1:])
        for axis in (len(shape) - 1, 1) if known else ():
            positions = math.prod(int(size) for size in shape[1:]) // int(shape[axis])
            norms = resolutions.get(positions, [])
            if len(norms) >= STAGE and shape[axis] in {site.channels for site in norms}:
                last[positions] = (value, [i for i in range(1, len(shape)) if i != axis])
    return list(last.values())[:-1]
