"""Losses on predictions, without labels: one value for each position, and the scalar that is differentiated.

A position is what has a prediction of its own: a sample, or with a dense head a pixel or token
(`ttac.passes.differentiate.heads`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from ttac.passes.differentiate.heads import Head, decide_head, scores_of
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims

ROOM = "loss"
SAMPLES, WEIGHTS = "entropy.samples", "sample.weights"
OTHER, AS_TARGET, AS_PREDICTION = "other.scores", "consistency.as_target", "consistency.as_prediction"


@dataclass(frozen=True)
class Loss:
    """What is differentiated, and what the forward hands out.

    Attributes:
        scalar: the value that is differentiated.
        stats: scalars the bundle reports after each step, by name.
        head: how the model's output is read.
        samples: the loss of each position [N, ...], where the graph input `weights` [N, ...] says how much each counts.
        scores: what it is computed from, in the shape of the output.
        fed: graph inputs besides `weights` that are known only when the forward is done.
    """

    scalar: ir.Value
    stats: dict[str, ir.Value]
    head: Head
    samples: ir.Value | None = None
    weights: ir.Value | None = None
    scores: ir.Value | None = None
    fed: tuple[ir.Value, ...] = ()

    @property
    def given(self) -> tuple[ir.Value, ...]:
        """All graph inputs that are known only when the forward is done."""
        return self.fed if self.weights is None else (self.weights, *self.fed)

    @property
    def outputs(self) -> list[ir.Value]:
        """What the forward gives besides the logits."""
        handed = [self.samples, None if self.scores is None or self.scores.is_graph_output() else self.scores]
        return [*self.stats.values(), *(value for value in handed if value is not None)]


def entropy(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """Mean over all positions of H(p) = -sum_c p_c ln p_c, in nats (TENT, arXiv:2006.10726, eq. 1)."""
    scalar = mean(op, entropies(op, scores, head), "entropy")
    return Loss(scalar, {"entropy": scalar}, head)


def weighted_entropy(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """sum_i w_i H(p_i) with weights that another graph of the method computes from the entropies, detached."""
    each = entropies(op, scores, head)
    each.name = SAMPLES
    weights = ir.val(WEIGHTS, dtype=each.dtype, shape=each.shape)
    op.graph.inputs.append(weights)
    scalar = total(op, op.Mul(each, weights), "entropy.weighted")
    return Loss(scalar, {"entropy": mean(op, each, "entropy")}, head, each, weights, scores)


def consistent_entropy(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """sum_i w_i H(p_i) + u*sum_i CE(p_i, q_i) + v*sum_i CE(q_i, p_i) with q of the fed scores of another view.

    With u for one view and v for the other, the gradients add up to that of u*sum_i CE(p_i, q_i) through both, and the
    two views' activations are never there at once.  `weighted_entropy` is the case u = v = 0.
    """
    found = weighted_entropy(op, scores, head)
    other = ir.val(OTHER, dtype=scores.dtype, shape=scores.shape)
    scalars = [ir.val(name, dtype=scores.dtype, shape=ir.Shape([])) for name in (AS_TARGET, AS_PREDICTION)]
    op.graph.inputs.extend([other, *scalars])
    pairs = ((scores, other), (other, scores))
    terms = [op.Mul(total(op, surprises(op, *pair, head)), by) for pair, by in zip(pairs, scalars, strict=True)]
    scalar = op.Add(found.scalar, op.Add(*terms), name="entropy.consistent")
    return replace(found, scalar=scalar, fed=(other, *scalars))


def pseudo_label(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """Mean over all positions of the cross-entropy to the likeliest answer, -max_c ln p_c, for the Fisher information.

    With a binary head, -max(ln s, ln(1 - s)) = log(1 + e^-|x|), averaged over the answers.
    """
    if head.binary:
        each = op.Softplus(op.Neg(op.Abs(scores)))
    else:
        each = op.Neg(op.ReduceMax(op.LogSoftmax(scores, axis=head.axis), [head.axis or 0], keepdims=0))
    return Loss(mean(op, each, "pseudo.label"), {}, head)


def entropies(op: Builder, scores: ir.Value, head: Head) -> ir.Value:
    """The entropy at each position, [N, ...], in nats; with a binary head, its mean over the answers."""
    if not head.binary:
        return op.Entropy(scores, axis=head.axis, name=SAMPLES)[0]
    each = op.BinaryEntropy(scores, name="entropy.answers")
    if head.axis is None:
        return each
    if head.outputs == 1:
        return op.Squeeze(each, [head.axis], name=SAMPLES)
    return op.ReduceMean(each, [head.axis], keepdims=0, name=SAMPLES)


def surprises(op: Builder, scores: ir.Value, other: ir.Value, head: Head) -> ir.Value:
    """CE(p, q) = -sum_c p_c ln q_c at each position, [N, ...], p and q of `scores` and `other`; the mean over answers.

    With a binary head, of an answer with scores x and y: softplus(y) - sigmoid(x)*y.
    """
    if head.binary:
        each = op.Sub(op.Softplus(other), op.Mul(op.Sigmoid(scores), other))
        return each if head.axis is None else op.ReduceMean(each, [head.axis], keepdims=0)
    likely = op.Mul(op.Softmax(scores, axis=head.axis), op.LogSoftmax(other, axis=head.axis))
    return op.Neg(op.ReduceSum(likely, [head.axis or 0], keepdims=0))


def mean(op: Builder, value: ir.Value, name: str) -> ir.Value:
    """The mean over all axes, one after the other from the last.

    Engines add one element after the other: over two million equal ones at once, a float32 mean is 1.7e-3 off.
    """
    for axis in reversed(range(len(dims(value)))):
        value = op.ReduceMean(value, [axis], keepdims=0, name="" if axis else name)
    return value


def total(op: Builder, value: ir.Value, name: str = "") -> ir.Value:
    """The sum over all axes, one after the other from the last as in `mean`: ones add up in float32 to 2^24 only."""
    for axis in reversed(range(len(dims(value)))):
        value = op.ReduceSum(value, [axis], keepdims=0, name="" if axis else name)
    return value


LOSSES: dict[str, Callable[[Builder, ir.Value, Head], Loss]] = {
    "entropy": entropy,
    "weighted_entropy": weighted_entropy,
    "consistent_entropy": consistent_entropy,
    "pseudo_label": pseudo_label,
}


def attach_loss(model: ir.Model, name: str, output: ir.Value, head: Head | None = None) -> Loss:
    """Append the loss `name` on the model's `output` to its graph.

    `head` says how the output is read; without it, that is decided here.  Raises UnsupportedError if the output is no
    prediction.
    """
    head = head or decide_head(output)
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    with op.at("loss"):
        return LOSSES[name](op, scores_of(op, output), head)
