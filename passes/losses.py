"""Losses on logits, without labels: each gives one value per sample and the scalar that is differentiated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

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
    """

    scalar: ir.Value
    stats: dict[str, ir.Value]
    samples: ir.Value | None = None
    weights: ir.Value | None = None

    @property
    def outputs(self) -> list[ir.Value]:
        """What the forward gives besides the logits."""
        return [*self.stats.values(), *([self.samples] if self.samples is not None else [])]


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
    return Loss(scalar, {"entropy": mean}, per_sample, weights)


def pseudo_label(op: Builder, logits: ir.Value) -> Loss:
    """Mean over the batch of the cross-entropy to the most likely class, -max_c ln p_c (EATA's Fisher information)."""
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


def attach_loss(model: ir.Model, name: str, logits: ir.Value) -> Loss:
    """Append the loss `name` on `logits` to the model's graph."""
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    with op.at("loss"):
        return LOSSES[name](op, logits)
