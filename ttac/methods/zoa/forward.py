"""The forward of ZOA (Deng et al., arXiv:2508.02180): loss of a batch, its domain, and the shift of its features."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.adapt.adapt_norms import batch_size
from ttac.passes.differentiate.losses import entropies, mean
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.norms.norm_sites import NormSite
from ttac.passes.step_graphs.answer import in_output_form, refuse_other_answers
from ttac.passes.step_graphs.class_token import ClassToken, Features, SourceFeatures, moments
from ttac.passes.step_graphs.context import Subject
from ttac.passes.step_graphs.linear_head import replace_output
from ttac.passes.step_graphs.stage_features import adapted_source_features, find_features

ROOM = "refine"
LOSS, CHANGED = "adaptation.loss", "domain.changed"
"""Outputs of the forward, scalars: the loss of the batch, and 1 if the batch begins a new domain."""
NEWEST = 0.36
"""Weight of a batch in the domain's statistics: twice 0.2, as the code's two forwards move them."""
TINY = 1e-8
FLOAT = int(ir.DataType.FLOAT)


def check(subject: Subject) -> None:
    """Raise UnsupportedError for single samples, whose features have no deviation, and for other outputs."""
    refuse_other_answers(subject, "`zoa` measures the entropy of one class")
    if subject.batch == 1:
        raise UnsupportedError(
            "the loss compares statistics of a batch, and one sample has none",
            where="`--batch 1`",
            hint="take a batch, `--batch 16`; for single samples `--method neo` or `foa-i`",
        )


def with_loss(subject: Subject) -> list[StateTensor]:
    """Add the outputs `adaptation.loss` and `domain.changed`, and shift the features before the classifier, in place.

    Raises UnsupportedError unless a linear layer makes the predictions, UsageError without calibration samples.
    """
    graph, settings = subject.model.graph, subject.settings
    op = Builder(graph, ROOM, subject.model.opset_imports[""])
    size = batch_size(op, graph)
    with op.at("domain"):
        features = find_features(op, subject)
        source = adapted_source_features(subject, features.layers)
        found = moments(op, features.layers, size)
        loss = _loss(op, subject, features, source, found)
        changed, state = _domain(op, subject, features, size)
        if settings["shift"]:
            state += _shifted(op, subject, features, (source, found[0]), changed)
        changed.name = CHANGED
    graph.outputs.extend([loss, changed])
    return state


def _loss(
    op: Builder, subject: Subject, features: Features, source: SourceFeatures, found: tuple[ir.Value, ir.Value]
) -> ir.Value:
    """w * mean_l (mean_d (mean - mean_S)^2 + mean_d (std - std_S)^2) + mean_i H_i, over layers l and features d.

    The entropies are those without the shift.
    """
    assert subject.head is not None
    widths = [int(dims(layer)[1]) for layer in features.layers]
    share = np.concatenate([np.full(width, 1 / width / len(widths), np.float32) for width in widths])
    squares = [op.Mul(apart, apart) for apart in (op.Sub(found[0], source.mean), op.Sub(found[1], source.deviation))]
    apart = op.ReduceSum(op.Mul(op.Add(*squares), share), keepdims=0)
    entropy = mean(op, entropies(op, features.scores, subject.head, "loss.entropies"), "loss.entropy")
    return op.Add(op.Mul(apart, float(subject.settings["discrepancy"])), entropy, name=LOSS)


def _domain(op: Builder, subject: Subject, features: Features, size: ir.Value) -> tuple[ir.Value, list[StateTensor]]:
    """1 if the batch begins a new domain, and the statistics of the domain: of the input of the first norm.

    The distance of two domains is the mean over channels of the symmetric Kullback-Leibler divergence of Gaussians.
    """
    settings, graph = subject.settings, op.graph
    mean_now, variance_now = _channel_moments(op, subject.sites[0], features)
    zeros = np.zeros([int(n) for n in dims(mean_now)], np.float32)
    none = np.zeros((), np.float32)
    mean_known, variance_known, known = (
        state_input(graph, f"domain.{name}", initial)
        for name, initial in (("mean", zeros), ("variance", zeros + 1), ("known", none))
    )
    apart = op.Sub(mean_known, mean_now)
    square = op.Mul(apart, apart)
    ways = ((variance_known, variance_now), (variance_now, variance_known))
    halves = [op.Div(op.Add(a, square), op.Mul(op.Add(b, TINY), 2.0)) for a, b in ways]
    distance = op.Sub(mean(op, op.Add(*halves), "domain.sum"), 1.0, name="domain.distance")
    large = op.Cast(op.GreaterOrEqual(size, float(settings["domain_samples"])), to=FLOAT)
    far = op.Cast(op.Greater(distance, float(settings["domain_distance"])), to=FLOAT)
    changed = op.Mul(op.Mul(known, large), far)
    fresh = op.Sub(1.0, op.Mul(known, op.Sub(1.0, changed)))
    weight = op.Mul(large, op.Max(fresh, NEWEST))
    return changed, [
        _moved(mean_known, zeros, op.Add(mean_known, op.Mul(op.Sub(mean_now, mean_known), weight))),
        _moved(variance_known, zeros + 1, op.Add(variance_known, op.Mul(op.Sub(variance_now, variance_known), weight))),
        _moved(known, none, op.Max(known, large)),
    ]


def _channel_moments(op: Builder, site: NormSite, features: Features) -> tuple[ir.Value, ir.Value]:
    """Mean and unbiased variance of each channel of the site's input; a class token, equal for all, does not count."""
    x = site.node.inputs[0]
    assert x is not None
    if isinstance(features, ClassToken) and x is features.tokens:
        x = op.Slice(x, [1], [int(dims(x)[1])], [1])
    rank = len(dims(x))
    channel = rank - 1 if site.kind in ("layer", "rms") else 1
    axes = [axis for axis in range(rank) if axis != channel]
    centre = op.ReduceMean(x, axes, keepdims=1)
    apart = op.Sub(x, centre)
    squares = op.ReduceMean(op.Mul(apart, apart), axes, keepdims=0)
    count = op.Cast(op.Div(op.Size(x), int(dims(x)[channel])), to=FLOAT)
    variance = op.Mul(squares, op.Div(count, op.Max(op.Sub(count, 1.0), 1.0)))
    return op.Squeeze(centre, axes), variance


def _shifted(
    op: Builder,
    subject: Subject,
    features: Features,
    means: tuple[SourceFeatures, ir.Value],
    changed: ir.Value,
) -> list[StateTensor]:
    """Let the classifier read features nearer to the source's mean, and follow the mean of the stream's features."""
    assert subject.head is not None
    settings, width = subject.settings, features.width
    zeros, none = np.zeros(width, np.float32), np.zeros((), np.float32)
    centre, seen = state_input(op.graph, "stream.centre", zeros), state_input(op.graph, "stream.seen", none)
    apart = op.Mul(op.Sub(op.constant(means[0].mean[-width:]), centre), seen)
    shifted = op.Add(features.layers[-1], op.Mul(apart, float(settings["shift"])))
    scores = features.classified(op, shifted)
    replace_output(subject, in_output_form(op, scores, subject.head))
    now = op.Slice(means[1], [-width], [len(means[0].mean)], [0])
    fresh = op.Sub(1.0, op.Mul(seen, op.Sub(1.0, changed)))
    weight = op.Max(fresh, float(settings["newest"]))
    return [
        _moved(centre, zeros, op.Add(centre, op.Mul(op.Sub(now, centre), weight))),
        _moved(seen, none, op.Add(op.Mul(seen, 0.0), 1.0)),
    ]


def _moved(value: ir.Value, initial: np.ndarray, following: ir.Value) -> StateTensor:
    """State of the stream, which `bake` leaves out unless the predictions read it."""
    following.name = f"{value.name}.next"
    role = "statistic" if str(value.name).startswith("stream.") else "counter"
    return StateTensor(name=str(value.name), role=role, initial=initial, value=value, next=following)
