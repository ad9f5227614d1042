"""Losses on logits, without labels: each gives one value per sample and the scalar that is differentiated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from ttac.passes.build import Builder

ROOM = "loss"


@dataclass(frozen=True)
class Loss:
    """`scalar` is differentiated; `stats` are scalars the bundle reports after each step, by name."""

    scalar: ir.Value
    stats: dict[str, ir.Value]


def entropy(op: Builder, logits: ir.Value) -> Loss:
    """Mean over the batch of H(p) = -sum_c p_c ln p_c, in nats; logits [N, C] (TENT, arXiv:2006.10726, eq. 1)."""
    log_p = op.LogSoftmax(logits, axis=-1)
    per_sample = op.Neg(op.ReduceSum(op.Mul(op.Exp(log_p), log_p), [1], keepdims=0), name="entropy.samples")
    scalar = op.ReduceMean(per_sample, [0], keepdims=0, name="entropy")
    return Loss(scalar, {"entropy": scalar})


LOSSES: dict[str, Callable[[Builder, ir.Value], Loss]] = {"entropy": entropy}


def attach_loss(model: ir.Model, name: str, logits: ir.Value) -> Loss:
    """Append the loss `name` on `logits` to the model's graph."""
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    with op.at("loss"):
        return LOSSES[name](op, logits)
