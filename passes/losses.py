"""Losses on logits, without labels: each gives one value per sample and the scalar that is differentiated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.autodiff import dims
from ttac.passes.build import Builder

ROOM = "loss"
SAMPLES, WEIGHTS = "entropy.samples", "sample.weights"


@dataclass(frozen=True)
class Loss:
    """What is differentiated, and what the forward hands out.

    Attributes:
        scalar: the value that is differentiated.
        stats: scalars the bundle reports after each step, by name.
        samples: the loss of each sample [N], where the graph input `weights` [N] says how much each counts.
        scores: what it is computed from, [N, C].
    """

    scalar: ir.Value
    stats: dict[str, ir.Value]
    samples: ir.Value | None = None
    weights: ir.Value | None = None
    scores: ir.Value | None = None

    @property
    def outputs(self) -> list[ir.Value]:
        """What the forward gives besides the logits."""
        handed = [self.samples, None if self.scores is None or self.scores.is_graph_output() else self.scores]
        return [*self.stats.values(), *(value for value in handed if value is not None)]


def entropy(op: Builder, logits: ir.Value) -> Loss:
    """Mean over the batch of H(p) = -sum_c p_c ln p_c, in nats; logits [N, C] (TENT, arXiv:2006.10726, eq. 1)."""
    scalar = op.ReduceMean(_entropies(op, logits), [0], keepdims=0, name="entropy")
    return Loss(scalar, {"entropy": scalar})


def weighted_entropy(op: Builder, logits: ir.Value) -> Loss:
    """sum_i w_i H(p_i) with weights that another graph of the method computes from the entropies, detached."""
    per_sample = _entropies(op, logits)
    per_sample.name = SAMPLES
    weights = ir.val(WEIGHTS, dtype=per_sample.dtype, shape=per_sample.shape)
    op.graph.inputs.append(weights)
    mean = op.ReduceMean(per_sample, [0], keepdims=0, name="entropy")
    scalar = op.ReduceSum(op.Mul(per_sample, weights), [0], keepdims=0, name="entropy.weighted")
    return Loss(scalar, {"entropy": mean}, per_sample, weights, logits)


def pseudo_label(op: Builder, logits: ir.Value) -> Loss:
    """Mean over the batch of the cross-entropy to the most likely class, -max_c ln p_c, for the Fisher information."""
    per_sample = op.Neg(op.ReduceMax(op.LogSoftmax(logits, axis=-1), [1], keepdims=0))
    return Loss(op.ReduceMean(per_sample, [0], keepdims=0, name="pseudo.label"), {})


def _entropies(op: Builder, logits: ir.Value) -> ir.Value:
    log_p = op.LogSoftmax(logits, axis=-1)
    return op.Neg(op.ReduceSum(op.Mul(op.Exp(log_p), log_p), [1], keepdims=0), name="entropy.samples")


LOSSES: dict[str, Callable[[Builder, ir.Value], Loss]] = {
    "entropy": entropy,
    "weighted_entropy": weighted_entropy,
    "pseudo_label": pseudo_label,
}


def attach_loss(model: ir.Model, name: str, output: ir.Value) -> Loss:
    """Append the loss `name` on the model's `output` to its graph.

    Raises UnsupportedError unless that output is scores of classes.
    """
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    with op.at("loss"):
        return LOSSES[name](op, class_scores(output))


def class_scores(output: ir.Value) -> ir.Value:
    """The scores [N, C] whose softmax the model predicts with: `output`, or what enters the Softmax it ends in.

    Raises UnsupportedError if there are no such scores.
    """
    node, sizes = output.producer(), dims(output)
    where = f"output `{output.name}` {output.shape}"
    if len(sizes) != 2 or sizes[1] == 1:
        raise UnsupportedError(
            "a loss on predictions needs the scores of two or more classes, [N, classes]",
            where=where,
            hint="choose an output that gives them, `--logits NAME`, or a method without a loss: `--method bn`",
        )
    if node is not None and node.op_type == "Sigmoid":
        raise UnsupportedError(
            "the model ends in a Sigmoid: its outputs are no distribution over classes",
            where=where,
            hint="export it without its last Sigmoid if its classes exclude each other, or use `--method bn`",
        )
    if node is not None and node.op_type == "Softmax" and node.attributes.get_int("axis", -1) in (-1, 1):
        scores = node.inputs[0]
        assert scores is not None
        return scores
    return output
