"""NumPy references of the native operators, in float64 and in the plain layout, with bounds of their rounding errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

EPS = float(np.finfo(np.float32).eps)

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _logistic(u: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-u))


def _normal(u: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + _erf(u / math.sqrt(2)))


def _density(u: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)


def _nearly_normal(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The approximation of `_normal` by tanh, and its derivative."""
    k, a = math.sqrt(2 / math.pi), 0.044715
    t = np.tanh(k * (u + a * u**3))
    return 0.5 * (1 + t), 0.5 * (1 - t * t) * k * (1 + 3 * a * u * u)


def _gate(u: np.ndarray) -> np.ndarray:
    return np.clip(u / 6 + 0.5, 0, 1)


Function = Callable[[np.ndarray, float, float], np.ndarray]

ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "none": (lambda u, low, high: u, lambda u, low, high: np.ones_like(u)),
    "relu": (lambda u, low, high: np.maximum(u, 0), lambda u, low, high: (u > 0) * 1.0),
    "clip": (lambda u, low, high: np.clip(u, low, high), lambda u, low, high: ((u > low) & (u < high)) * 1.0),
    "silu": (
        lambda u, low, high: u * _logistic(u),
        lambda u, low, high: _logistic(u) * (1 + u * (1 - _logistic(u))),
    ),
    "hardswish": (
        lambda u, low, high: u * _gate(u),
        lambda u, low, high: _gate(u) + np.where(np.abs(u) < 3, u / 6, 0),
    ),
    "gelu": (lambda u, low, high: u * _normal(u), lambda u, low, high: _normal(u) + u * _density(u)),
    "tanhgelu": (
        lambda u, low, high: u * _nearly_normal(u)[0],
        lambda u, low, high: _nearly_normal(u)[0] + u * _nearly_normal(u)[1],
    ),
}
"""Name -> the activation and its derivative, as functions of u, low, high."""


@dataclass(kw_only=True)
class Norm:
    """A normalisation of x [N, C, ...] in float64.

    Attributes:
        given: mean and variance, where these are constants.
        apart: bound of the rounding errors of u, as a multiple of EPS, by element.
    """

    x: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    residual: np.ndarray | None
    epsilon: float
    act: str
    low: float = 0.0
    high: float = 0.0
    given: tuple[np.ndarray, np.ndarray] | None = None

    def __post_init__(self) -> None:
        """Compute the statistics, the normalised x, and u."""
        x = self.x.astype(np.float64)
        self.axes = (0, *range(2, x.ndim))
        self.mean, self.variance = self.given or (x.mean(self.axes), x.var(self.axes))
        self.inverse = 1 / np.sqrt(self.variance.astype(np.float64) + self.epsilon)
        self.hat = (x - self.each(self.mean)) * self.each(self.inverse)
        self.u = self.hat * self.each(self.scale) + self.each(self.bias)
        if self.residual is not None:
            self.u = self.u + self.residual
        largest = np.abs(np.where(np.isfinite(x), x, 0)).max(self.axes) + np.abs(self.mean)
        self.hat_error = self.each(largest * self.inverse) + np.abs(self.hat)
        self.error = self.hat_error * np.abs(self.each(self.scale)) + np.abs(self.each(self.bias)) + np.abs(self.u)

    def each(self, values: np.ndarray) -> np.ndarray:
        """[C] -> [1, C, 1, ...]."""
        return values.astype(np.float64).reshape(1, -1, *[1] * (self.x.ndim - 2))

    def forward(self) -> np.ndarray:
        """y, of the shape of x."""
        return ACTIVATIONS[self.act][0](self.u, self.low, self.high)

    def mask(self) -> np.ndarray:
        """Where the derivative of the activation is not zero."""
        return ACTIVATIONS[self.act][1](self.u, self.low, self.high) != 0

    def near_a_corner(self, times: float) -> np.ndarray:
        """Where rounding may put u on the other side of a corner of the activation."""
        corners = {"relu": [0.0], "clip": [self.low, self.high], "hardswish": [-3.0, 3.0]}.get(self.act, [])
        near = [np.abs(self.u - corner) <= times * EPS * self.error for corner in corners]
        return np.any(near, axis=0) if near else np.zeros(self.u.shape, bool)

    def backward(
        self, dy: np.ndarray, dy_error: np.ndarray | float = 0.0, more: np.ndarray | None = None
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Output name -> its values, and a bound of their rounding errors as a multiple of EPS.

        `dy_error` is that of dy, and `more` is added to dx.  Near a corner of the activation all of dy may be missing.
        """
        slope = ACTIVATIONS[self.act][1](self.u, self.low, self.high)
        du = np.where(slope == 0, 0, dy * slope)
        smooth = self.act in ("silu", "hardswish", "gelu", "tanhgelu")
        finite = np.where(np.isfinite(self.error), self.error, 0)  # the derivative is constant far away
        du_error = np.abs(du) + (np.abs(dy) * (2 + finite) if smooth else 0) + np.abs(slope) * dy_error
        du_error = du_error + np.where(self.near_a_corner(16), np.abs(dy) / EPS, 0)
        dbias, dbias_error = du.sum(self.axes), du_error.sum(self.axes)
        dscale = (du * self.hat).sum(self.axes)
        dscale_error = (du_error * np.abs(self.hat) + np.abs(du) * self.hat_error).sum(self.axes)
        factor, count = self.each(self.scale * self.inverse), du.size // du.shape[1]
        if self.given:
            dx, inner = factor * du, du_error
        else:
            dx = factor * (du - self.each(dbias) / count - self.hat * self.each(dscale) / count)
            inner = du_error + self.each(dbias_error + np.abs(dbias)) / count
            inner = inner + np.abs(self.hat) * self.each(dscale_error + np.abs(dscale)) / count
            inner = inner + self.hat_error * self.each(np.abs(dscale)) / count
        dx_error = np.abs(factor) * inner
        if more is not None:
            dx, dx_error = dx + more, dx_error + np.abs(dx) + np.abs(more)
        return {
            "dx": (dx, dx_error),
            "dscale": (dscale, dscale_error),
            "dbias": (dbias, dbias_error),
            "du": (du, du_error),
        }
