"""How much a sample's own statistics count beside the source's (LeanTTA, arXiv:2503.15889)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.builder import Builder
from ttac.settings import value_at


def own_share(
    op: Builder, step: ir.Value, var: np.ndarray, settings: Mapping[str, Any], site: str, *, counted: bool = False
) -> ir.Value:
    """g = (1 - tau)*(1 - d^lambda) with d = 1 - exp(-q): [N, 1], or one number of a single sample.

    q is the squared distance of the blended mean from the source's, by the source's variance.  For a small q, where
    1 - exp(-q) would cancel, d comes exact from t = tanh(q/2) as 2t/(1 + t).  Means of `counted` 8-bit numbers are
    coarser than what cancels, 6e-8, and do without.

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
    share: ir.Value = op.Mul(op.Sub(1.0, d), 1.0 - tau)
    return share


def _distance(
    op: Builder, step: ir.Value, var: np.ndarray, settings: Mapping[str, Any], tau: float, times: float
) -> ir.Value:
    """q of each sample, `times` a number."""
    scale = np.maximum(var.astype(np.float64), np.finfo(np.float32).tiny)
    scale = scale**2 if settings["metric"] == "squared" else scale
    count = len(var) if settings["distance"] == "mean" else 1
    weights = np.minimum((1 - tau) ** 2 / scale / count, np.finfo(np.float32).max) * times
    single = len(step.shape or ()) == 1
    if single and is_even(weights):
        found: ir.Value = op.Mul(op.ReduceSumSquare(step, keepdims=0), float(weights[0]))
    else:
        found = op.MatMul(op.Mul(step, step), (weights if single else weights[:, None]).astype(np.float32))
    return found


def shortened(array: np.ndarray) -> np.ndarray:
    """One number in place of many that are all the same."""
    return np.array(array[0] if is_even(array) else array, np.float32)


def is_even(array: np.ndarray) -> bool:
    """Whether all elements are the same number to float32."""
    return bool(np.ptp(array) <= np.finfo(np.float32).eps * np.abs(array).max(initial=0.0))
