"""Losses on predictions, without labels: one value for each position, and the scalar that is differentiated.

Each position has one prediction.  A position is a sample, or with a dense head a pixel or token
(`ttac.passes.differentiate.heads`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.differentiate.heads import Head, decide_head, scores_of
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.samples.predictions import BOXES
from ttac.spec import Reference, function_of

ROOM = "loss"
SAMPLES, WEIGHTS = "entropy.samples", "sample.weights"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A scalar to differentiate, and further outputs of the forward.

    Attributes:
        scalar: the differentiated value.
        stats: scalars that the bundle reports after each step, by name.
        head: the reading of the model's output.
        samples: the loss of each position [N, ...], which the graph input `weights` [N, ...] multiplies.
        scores: the values from which the loss is computed, in the shape of the output.
        other_inputs: further graph inputs that get a value after the forward.
    """

    scalar: ir.Value
    stats: dict[str, ir.Value]
    head: Head
    samples: ir.Value | None = None
    weights: ir.Value | None = None
    scores: ir.Value | None = None
    other_inputs: tuple[ir.Value, ...] = ()

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """All graph inputs that get a value after the forward."""
        return self.other_inputs if self.weights is None else (self.weights, *self.other_inputs)

    @property
    def outputs(self) -> list[ir.Value]:
        """Outputs of the forward in addition to the logits."""
        others = [self.samples, None if self.scores is None or self.scores.is_graph_output() else self.scores]
        return [*self.stats.values(), *(value for value in others if value is not None)]


Output = tuple[ir.Value, Head, float]
"""An output that a loss reads in addition to the first, its head, and its weight where that of the first is 1."""


def entropy(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """Mean over all positions of H(p) = -sum_c p_c ln p_c, in nats (Wang et al., arXiv:2006.10726, eq. 1)."""
    each = entropies(op, scores, head)
    scalar = counted_mean(op, each, counted_positions(op, scores, head), "entropy")
    return Loss(scalar=scalar, stats={"entropy": scalar}, head=head)


def weighted_entropy(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """sum_i w_i H(p_i) with weights that another graph of the method computes from the entropies, detached.

    A position that does not count has the entropy ln C of no knowledge, so that no method finds the position reliable.
    """
    return weighed(op, entropies(op, scores, head), scores, head)


def weighed(op: Builder, each: ir.Value, scores: ir.Value, head: Head) -> Loss:
    """sum_i w_i H_i for entropies `each` [N, ...], as `weighted_entropy`."""
    counted, every = counted_positions(op, scores, head), each
    if counted is not None:
        each.name = f"{SAMPLES}.all"
        every = op.Where(counted, each, math.log(head.classes))
    every.name = SAMPLES
    weights = ir.val(WEIGHTS, dtype=each.dtype, shape=each.shape)
    op.graph.inputs.append(weights)
    scalar = total(op, op.Mul(every, weights), "entropy.weighted")
    average = counted_mean(op, each, counted, "entropy")
    return Loss(scalar=scalar, stats={"entropy": average}, head=head, samples=every, weights=weights, scores=scores)


def counted_positions(op: Builder, scores: ir.Value, head: Head) -> ir.Value | None:
    """Positions that count, bool in the shape of the positions; None if all do.

    A frame or box whose class is `head.ignored` counts for nothing.  Without such a class, the `BOXES` most confident
    boxes of a detector count: nearly all others are background, whose entropy is almost 0.
    """
    if head.mask:
        mask = next(value for value in op.graph.inputs if value.name == head.mask)
        truth = op.Cast(mask, to=int(ir.DataType.BOOL))
        return truth if head.counts else op.Not(truth)
    if head.ignored is not None:
        return op.Not(op.Equal(op.ArgMax(scores, axis=head.axis, keepdims=0), head.ignored))
    if head.kind != "detection":
        return None
    confidence = _confidence(op, op.Sigmoid(scores), head)
    boxes = int(next(size for size in dims(confidence)[1:]))
    best, _ = op.TopK(confidence, [min(BOXES, boxes)], axis=1)
    return op.GreaterOrEqual(confidence, op.ReduceMin(best, [1], keepdims=1))


def _confidence(op: Builder, each: ir.Value, head: Head) -> ir.Value:
    """The largest probability of each box, times that of any object, [N, boxes]."""
    if head.axis is None:
        return each
    if not head.objectness:
        return op.ReduceMax(each, [head.axis], keepdims=0)
    first, rest = op.Split(each, [1, head.outputs - 1], axis=head.axis, outputs=2)
    return op.Mul(op.Squeeze(first, [head.axis]), op.ReduceMax(rest, [head.axis], keepdims=0))


def counted_mean(op: Builder, each: ir.Value, counted: ir.Value | None, name: str) -> ir.Value:
    """The mean of `each` over the `counted` positions, 0 if there are none; over all positions for None."""
    if counted is None:
        return mean(op, each, name)
    ones = op.Cast(counted, to=int(ir.DataType.FLOAT))
    return op.Div(total(op, op.Mul(each, ones)), op.Max(total(op, ones), 1.0), name=name)


def entropies(op: Builder, scores: ir.Value, head: Head, name: str = SAMPLES) -> ir.Value:
    """Return the entropy at each position, [N, ...], in nats; with a binary head, the mean entropy of the answers."""
    if not head.binary:
        return op.Entropy(scores, axis=head.axis, name=name)[0]
    each = op.BinaryEntropy(scores, name="entropy.answers" if name == SAMPLES else f"{name}.answers")
    if head.axis is None:
        return each
    if head.outputs == 1:
        return op.Squeeze(each, [head.axis], name=name)
    return op.ReduceMean(each, [head.axis], keepdims=0, name=name)


def surprises(op: Builder, scores: ir.Value, other: ir.Value, head: Head) -> ir.Value:
    """CE(p, q) = -sum_c p_c ln q_c at each position, [N, ...], with p from `scores` and q from `other`.

    With a binary head, the mean over the answers of softplus(y) - sigmoid(x)*y, for scores x and y of an answer.
    """
    if head.binary:
        each = op.Sub(op.Softplus(other), op.Mul(op.Sigmoid(scores), other))
        return each if head.axis is None else op.ReduceMean(each, [head.axis], keepdims=0)
    likely = op.Mul(op.Softmax(scores, axis=head.axis), op.LogSoftmax(other, axis=head.axis))
    return op.Neg(op.ReduceSum(likely, [head.axis or 0], keepdims=0))


def labelled(op: Builder, scores: ir.Value, name: str) -> tuple[ir.Value, ir.Value]:
    """CE of each sample, [N], for scores [N, classes], and the new graph input `name`, the labels as ones and zeros."""
    labels = ir.val(name, dtype=scores.dtype, shape=scores.shape)
    op.graph.inputs.append(labels)
    return op.Neg(op.ReduceSum(op.Mul(labels, op.LogSoftmax(scores, axis=1)), [1], keepdims=0)), labels


def mean(op: Builder, value: ir.Value, name: str) -> ir.Value:
    """Return the mean over all axes, one axis after the other from the last.

    Engines add one element after the other: a float32 mean of two million equal elements at once is 1.7e-3 off.
    """
    for axis in reversed(range(len(dims(value)))):
        value = op.ReduceMean(value, [axis], keepdims=0, name="" if axis else name)
    return value


def total(op: Builder, value: ir.Value, name: str = "") -> ir.Value:
    """Return the sum over all axes, from the last as in `mean`: a float32 sum of ones stops at 2^24."""
    for axis in reversed(range(len(dims(value)))):
        value = op.ReduceSum(value, [axis], keepdims=0, name="" if axis else name)
    return value


LOSSES: dict[str, Callable[[Builder, ir.Value, Head], Loss]] = {
    "entropy": entropy,
    "weighted_entropy": weighted_entropy,
}


def joined(op: Builder, loss: Reference, scores: ir.Value, head: Head, others: Sequence[Output]) -> Loss:
    """The loss on several outputs: the first with weight 1, the `others` with theirs.

    `entropy` becomes the weighted sum of the means, `weighted_entropy` weighs the weighted mean of the entropies of
    each position.  Raises UnsupportedError for another loss, or for outputs with other positions.
    """
    hint = "name one output: `--logits NAME`"
    if loss not in LOSSES:
        raise UnsupportedError("the loss of this method reads one output", where="`--logits`", hint=hint)
    parts = [(entropies(op, scores, head, f"{SAMPLES}.1"), counted_positions(op, scores, head), 1.0)]
    for number, (output, own, weight) in enumerate(others, 2):
        read = scores_of(op, output, own)
        each = entropies(op, read, own, f"{SAMPLES}.{number}")
        parts.append((each, counted_positions(op, read, own), weight))
    if loss == "entropy":
        means = [op.Mul(counted_mean(op, each, counted, ""), weight) for each, counted, weight in parts]
        scalar = reduce(op.Add, means[:-1])
        scalar = op.Add(scalar, means[-1], name="entropy")
        return Loss(scalar=scalar, stats={"entropy": scalar}, head=head)
    if any(own.positions != head.positions for _, own, _ in others):
        shapes = ", ".join(str(list(own.positions)).replace("'", "") for own in (head, *(own for _, own, _ in others)))
        problem = f"this method weighs each prediction, and the outputs have other predictions: {shapes}"
        raise UnsupportedError(problem, where="`--logits`", hint=hint)
    whole = sum(weight for _, _, weight in parts)
    shares = [op.Mul(each, weight / whole) for each, _, weight in parts]
    return weighed(op, reduce(op.Add, shares), scores, head)


def attach_loss(
    model: ir.Model, loss: Reference, output: ir.Value, head: Head | None = None, others: Sequence[Output] = ()
) -> Loss:
    """Append a loss on the model's `output` to its graph.

    `loss` is a name in `LOSSES` or a reference to a function `(op, scores, head) -> Loss`.  `head` is the reading of
    the output; without `head`, this function decides it.  `others` are outputs that the loss reads too.  Raises
    UnsupportedError if the output is no prediction, or the loss reads no others.
    """
    head = head or decide_head(output)
    function = LOSSES[loss] if isinstance(loss, str) and loss in LOSSES else function_of(loss)
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    with op.at("loss"):
        scores = scores_of(op, output, head)
        if others:
            return joined(op, loss, scores, head, others)
        attached: Loss = function(op, scores, head)
    return attached
