"""Compare the gradients of a bundle with finite differences, by the chain rule.

The derivative of the scores along a direction of the parameters is a central difference of the forward. The derivative
of the loss along that change of the scores is a central difference in float64. So the step depends on the size of the
parameters, never on the loss. The loss of confident or near-uniform predictions is almost flat. A step that changes
such a loss noticeably is too wide: the scores are not linear over the step.

The engine computes the forward in float32, which is fast. In deep nets on few values, kinks and rounding can leave the
differences uncertain. Then a reference implementation computes the forward in float64, with steps 1000 times finer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Arrays = Mapping[str, np.ndarray]

BOUND = 5e-3
"""Relative difference between gradients and finite differences that is allowed."""
STEPS = (1e-2, 3e-3, 1e-3, 3e-4)
"""Largest change of a parameter in a central difference, as a fraction of the parameters' root mean square."""
EXACT_STEPS = (1e-5, 1e-6, 1e-7)
"""The same in float64."""
TINY = 1e-3
"""Least root mean square of the parameters that scales the step, without a unit: parameters may all begin at zero."""
LOSS_STEP = 1e-4
"""Largest change of a score in the central difference of the loss, which float64 resolves to eight digits."""
CERTAIN = 1e-3
"""Relative uncertainty of a central difference that suffices for a verdict."""
DIRECTIONS = 12
"""Number of directions that decide where there is no float64 and the first direction shows an error."""
VANISHING = 1e-12
"""Length of a gradient, in nats per unit of the parameters, below which there is nothing to compare."""


class Quotient(NamedTuple):
    """A central difference: its relative change from the step before, and its signed relative error."""

    uncertainty: float
    error: float


class Direction(NamedTuple):
    """A direction of the parameters: a change of each, at most 1, and the derivative that the gradients predict."""

    changes: list[np.ndarray]
    predicted: float


Forward = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
Loss = Callable[[Sequence[np.ndarray]], float]


def derivative_error(
    parameters: Sequence[np.ndarray],
    gradients: Sequence[np.ndarray],
    forward: Forward,
    exact_forward: Callable[[], Forward | None],
    loss: Loss,
) -> float:
    """Return the relative difference of finite differences of the loss from the `gradients`.

    Args:
        forward: from parameters to the scores, in float32.
        exact_forward: makes the same in float64, where possible.
        loss: the loss in float64, from scores.
    """
    if gradient_length(gradients) < VANISHING:
        return 0.0
    parameters = [each.astype(np.float64) for each in parameters]
    quick = compared(parameters, gradients, forward, loss, STEPS)
    if not math.isfinite(quick[0].error):
        return math.nan
    if min(quick).uncertainty <= CERTAIN and abs(min(quick).error) <= BOUND:
        return abs(min(quick).error)
    if (exact := exact_forward()) is not None:
        return unexplained(compared(parameters, gradients, exact, loss, EXACT_STEPS))
    errors = [min(compared(parameters, gradients, forward, loss, STEPS, seed)).error for seed in range(DIRECTIONS)]
    return min(unexplained(quick), mean_error(errors))


def gradient_length(gradients: Sequence[np.ndarray]) -> float:
    """Return the length of all gradients together."""
    return math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients))


def compared(
    parameters: Sequence[np.ndarray],
    gradients: Sequence[np.ndarray],
    forward: Forward,
    loss: Loss,
    steps: Sequence[float],
    seed: int = 0,
) -> list[Quotient]:
    """Return the differences along one direction against the gradients, with shrinking `steps`."""
    direction = random_direction(gradients, seed)
    middle = [each.astype(np.float64) for each in forward(parameters)]
    size = max(TINY, math.sqrt(float(np.mean(np.concatenate([p.reshape(-1) for p in parameters]) ** 2))))

    def derivative(step: float) -> float:
        width = step * size
        up, down = (
            forward([p + sign * width * change for p, change in zip(parameters, direction.changes, strict=True)])
            for sign in (1.0, -1.0)
        )
        changes = [(u.astype(np.float64) - d) / (2 * width) for u, d in zip(up, down, strict=True)]
        return along(loss, middle, changes)

    return quotients(derivative, direction.predicted, steps)


def random_direction(gradients: Sequence[np.ndarray], seed: int) -> Direction:
    """Return a direction, half that of the gradient and half random, so that its derivative exceeds rounding."""
    random = np.random.default_rng(seed)
    length = gradient_length(gradients)
    exact = [g.astype(np.float64) for g in gradients]
    noise = [random.normal(size=g.shape) for g in gradients]
    size = math.sqrt(sum(float((n**2).sum()) for n in noise))
    changes = [g / length + n / size for g, n in zip(exact, noise, strict=True)]
    largest = max(float(np.abs(change).max(initial=0.0)) for change in changes)
    changes = [change / largest for change in changes]
    return Direction(changes, sum(float((g * c).sum()) for g, c in zip(exact, changes, strict=True)))


def along(loss: Loss, scores: Sequence[np.ndarray], changes: Sequence[np.ndarray]) -> float:
    """Return the derivative of `loss` at `scores` along `changes`, all float64."""
    largest = max(float(np.abs(change).max(initial=0.0)) for change in changes)
    if not largest:
        return 0.0
    width = LOSS_STEP / largest
    up, down = (loss([s + w * c for s, c in zip(scores, changes, strict=True)]) for w in (width, -width))
    return (up - down) / (2 * width)


def quotients(derivative: Callable[[float], float], predicted: float, steps: Sequence[float]) -> list[Quotient]:
    """Return the central differences `derivative(step)` against `predicted`, with shrinking `steps`.

    The uncertainty has three causes: curvature, kinks and rounding. The steps shrink until the uncertainty is CERTAIN
    or less and the error is BOUND or less.
    """
    differences: list[Quotient] = []
    far: float | None = None
    for step in steps:
        near = derivative(step)
        if not math.isfinite(near):
            return [Quotient(math.nan, math.nan)]
        if far is not None:
            differences.append(Quotient(abs(near - far) / abs(predicted), (near - predicted) / abs(predicted)))
            if differences[-1].uncertainty <= CERTAIN and abs(differences[-1].error) <= BOUND:
                break
        far = near
    return differences


def unexplained(quotients: Sequence[Quotient]) -> float:
    """Return the least error beyond the uncertainty, of all certain quotients, else of the least uncertain one."""
    if math.isnan(quotients[0].error):
        return math.nan
    bound = max(CERTAIN, min(quotients).uncertainty)
    certain = [each for each in quotients if each.uncertainty <= bound]
    return min(max(0.0, abs(each.error) - each.uncertainty) for each in certain)


def mean_error(errors: Sequence[float]) -> float:
    """Return the mean of the signed `errors` in several directions, beyond two standard errors.

    Kinks of a deep net move single quotients by a per cent, up or down; a wrong gradient moves all in one direction.
    """
    deviation = float(np.std(errors, ddof=1)) / math.sqrt(len(errors))
    return max(0.0, abs(float(np.mean(errors))) - 2 * deviation)
