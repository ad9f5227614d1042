"""Blend weight: the weight of a sample's statistics against the source's (Dong et al., arXiv:2503.15889)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.settings import value_at


def blend_weight(
    op: Builder, step: ir.Value, var: np.ndarray, settings: Mapping[str, Any], site: str, *, counted: bool = False
) -> ir.Value:
    """g = (1 - tau)*(1 - d^lambda) with d = 1 - exp(-q): [N, 1], or one number of a single sample.

    q is the squared distance of the blended mean from the source's, divided by the source's variance.  For a small q
    1 - exp(-q) cancels, so d is computed from t = tanh(q/2) as 2t/(1 + t).  Means of `counted` 8-bit numbers are
    coarser than the cancellation, 6e-8, and take 1 - exp(-q).

    Args:
        step: the sample's mean less the source's, [N, C], or [C] of a single sample.
        var: the source's variance, epsilon included [C].
    """
    tau, power = (float(value_at(settings, name, site)) for name in ("tau", "lambda"))
    if counted:
        d = op.Sub(1.0, op.Exp(_distance(op, step, var, settings, tau, -1.0)))
    else:
        t = op.Tanh(_distance(op, step, var, settings, tau, 0.5))
        d = op.Div(op.Add(t, t), op.Add(t, 1.0))
    if power != 1.0:
        d = op.Pow(d, power)
    weight: ir.Value = op.Mul(op.Sub(1.0, d), 1.0 - tau)
    return weight


def _distance(
    op: Builder, step: ir.Value, var: np.ndarray, settings: Mapping[str, Any], tau: float, times: float
) -> ir.Value:
    """q of each sample, multiplied by `times`."""
    scale = np.maximum(var.astype(np.float64), np.finfo(np.float32).tiny)
    scale = scale**2 if settings["metric"] == "squared" else scale
    count = len(var) if settings["distance"] == "mean" else 1
    weights = np.minimum((1 - tau) ** 2 / scale / count, np.finfo(np.float32).max) * times
    single = len(step.shape or ()) == 1
    if single and is_even(weights):
        distance: ir.Value = op.Mul(op.ReduceSumSquare(step, keepdims=0), float(weights[0]))
    else:
        distance = op.MatMul(op.Mul(step, step), (weights if single else weights[:, None]).astype(np.float32))
    return distance


def shortened(array: np.ndarray) -> np.ndarray:
    """`array` [C], or a scalar if all its elements are equal."""
    return np.array(array[0] if is_even(array) else array, np.float32)


def is_even(array: np.ndarray) -> bool:
    """Whether all elements are equal in float32."""
    return bool(np.ptp(array) <= np.finfo(np.float32).eps * np.abs(array).max(initial=0.0))
