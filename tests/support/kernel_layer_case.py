"""Random cases of layer norms, activations and the gradient of a softmax, compared with NumPy in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.kernel_norm_case import KINDS, agree, spoiled
from tests.support.kernel_reference import ACTIVATIONS, EPS
from tests.support.kernel_session import blocked, plain, run

STATISTICS = ("mean", "reciprocal")


@dataclass(frozen=True, kw_only=True)
class LayerCase:
    """Everything that one case is made of.

    Attributes:
        shape: of x without padding; the channels are its last axis, or its second one.
        block: of the second axis; 0 where the channels are the last axis.
    """

    seed: int
    shape: tuple[int, ...]
    block: int
    kind: str
    residual: bool
    more: bool
    outputs: tuple[str, ...]

    @property
    def axis(self) -> int:
        """The axis of the channels."""
        return 1 if self.block else -1

    def memory(self, x: np.ndarray) -> np.ndarray:
        """`x` in the order of the memory, with zeros for the channels that fill the last block."""
        if not self.block:
            return x
        widths = [(0, 0), (0, -x.shape[1] % self.block), *[(0, 0)] * (x.ndim - 2)]
        return blocked(np.pad(x, widths), self.block)

    def plain(self, x: np.ndarray) -> np.ndarray:
        """The inverse of `memory`; AssertionError if the padding is not zero."""
        if not self.block:
            return x
        whole, channels = plain(x, self.block), self.shape[1]
        assert not whole[:, channels:].any(), "padding"
        return whole[:, :channels]

    def vector(self, x: np.ndarray) -> np.ndarray:
        """`x` [C] with zeros for the channels that fill the last block."""
        return np.pad(x, (0, -len(x) % self.block)) if self.block else x


def layer_case(seed: int) -> LayerCase:
    """Return a random case; the same seed makes the same case."""
    random = np.random.default_rng(seed)
    block = int(random.choice([0, 0, 0, 1, 2, 4, 8, 16]))
    channels = int(random.choice([1, 2, 3, 8, 15, 16, 17, 33, 40, 64, 192, 300]))
    sides = [int(side) for side in random.choice([1, 2, 3, 5, 7, 20, 70], size=random.integers(0, 3))]
    samples = int(random.choice([1, 2, 3, 8]))
    wanted = [name if random.random() < 0.7 else "" for name in ("dx", "dscale", "dbias")]
    return LayerCase(
        seed=seed,
        shape=(samples, channels, *sides) if block else (samples, *sides, channels),
        block=block,
        kind=str(random.choice(KINDS)),
        residual=bool(random.random() < 0.4),
        more=bool(random.random() < 0.4),
        outputs=tuple(wanted) if any(wanted) else ("dx", "", ""),
    )


def check_layer(case: LayerCase, threads: int = 2) -> None:
    """Run both operators of a case; AssertionError where a number is further off than rounding explains."""
    random = np.random.default_rng(case.seed + 1)
    x, width = spoiled(random, case.shape, case.kind), case.shape[case.axis]
    scale, bias = random.uniform(-1.5, 1.5, width).astype(np.float32), random.standard_normal(width).astype(np.float32)
    dy, residual, more = (random.standard_normal(case.shape).astype(np.float32) for _ in range(3))
    attributes = {"axis": case.axis, "epsilon": 1e-3, "block": case.block or 1, "channels": width}
    inputs = {"x": case.memory(x), "scale": case.vector(scale), "bias": case.vector(bias)}
    outputs = ["y", *STATISTICS]
    if case.residual:
        inputs["residual"], outputs = case.memory(residual), [*outputs, "sum"]
        x = x + residual
    with np.errstate(all="ignore"):
        norm = Layer(case, x, scale, bias)
        found = run("LayerNormForward", inputs, outputs, attributes, threads)
        agree("y", case.plain(found["y"]), norm.y, norm.error)
        agree("mean", found["mean"], norm.flat(norm.mean), norm.flat(norm.largest))
        fed = {"dy": case.memory(dy), "x": case.memory(x), "scale": case.vector(scale)}
        fed |= {name: found[name] for name in STATISTICS}
        fed["more"] = case.memory(more) if case.more else None
        made = run("LayerNormBackward", fed, list(case.outputs), attributes, threads)
        for name, (expected, error) in norm.backward(dy, more if case.more else None).items():
            if name in made:
                agree(name, case.plain(made[name]) if name == "dx" else made[name][:width], expected, error)


class Layer:
    """A norm of each position in float64, and bounds of the rounding errors as multiples of EPS."""

    def __init__(self, case: LayerCase, x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> None:
        self.axis, self.count = case.axis, x.shape[case.axis]
        self.shape = [1] * x.ndim
        self.shape[case.axis] = -1
        x = x.astype(np.float64)
        self.mean = x.mean(self.axis, keepdims=True)
        self.inverse = 1 / np.sqrt(x.var(self.axis, keepdims=True) + 1e-3)
        self.hat = (x - self.mean) * self.inverse
        self.largest = np.abs(np.where(np.isfinite(x), x, 0)).max(self.axis, keepdims=True)
        self.hat_error = self.largest * self.inverse + np.abs(self.hat)
        self.scale = scale.astype(np.float64).reshape(self.shape)
        offset = bias.astype(np.float64).reshape(self.shape)
        self.y = self.hat * self.scale + offset
        self.error = 2 * self.hat_error * np.abs(self.scale) + np.abs(offset) + np.abs(self.y)

    def flat(self, statistic: np.ndarray) -> np.ndarray:
        """A statistic without the axis of the channels."""
        return statistic.squeeze(self.axis)

    def backward(self, dy: np.ndarray, more: np.ndarray | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Output name -> its values, and a bound of their rounding errors as a multiple of EPS."""
        g, others = dy * self.scale, tuple(i for i in range(dy.ndim) if i != self.axis % dy.ndim)
        hat_error = 2 * self.hat_error
        along = (g * self.hat).mean(self.axis, keepdims=True)
        dx = self.inverse * (g - g.mean(self.axis, keepdims=True) - self.hat * along)
        along_error = (np.abs(g) * (np.abs(self.hat) + hat_error)).mean(self.axis, keepdims=True)
        inner = np.abs(g) + np.abs(g).mean(self.axis, keepdims=True)
        inner = inner + np.abs(self.hat) * along_error + hat_error * (np.abs(along) + EPS * along_error)
        error = 2 * self.inverse * inner * (1 + EPS * (self.largest * self.inverse) ** 2)
        if more is not None:
            dx, error = dx + more, error + np.abs(more)
        products = np.abs(dy) * (np.abs(self.hat) + hat_error)
        return {
            "dx": (dx, error),
            "dscale": ((dy * self.hat).sum(others), 2 * products.sum(others)),
            "dbias": (dy.sum(others, dtype=np.float64), 2 * np.abs(dy).sum(others)),
        }


def check_activation(seed: int) -> None:
    """Run ActivationForward and ActivationBackward on random numbers."""
    random = np.random.default_rng(seed)
    shape = tuple(int(side) for side in random.integers(1, 40, size=random.integers(1, 4)))
    act, kind = str(random.choice(list(ACTIVATIONS)[1:])), str(random.choice(KINDS))
    x, dy = spoiled(random, shape, kind) * np.float32(3), random.standard_normal(shape).astype(np.float32)
    attributes: dict[str, Any] = {"act": act, "low": -0.5, "high": 1.25}
    value, slope = ACTIVATIONS[act]
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        made = run("ActivationForward", {"x": x}, ["y"], attributes)
        agree("y", made["y"], value(wide, -0.5, 1.25), np.abs(wide) + 1)
        corner = np.isin(x, np.float32([0, -0.5, 1.25, 3, -3]))
        made = run("ActivationBackward", {"dy": np.where(corner, np.float32(0), dy), "x": x}, ["dx"], attributes)
        expected = np.where(corner, 0, dy) * slope(wide, -0.5, 1.25)
        agree("dx", made["dx"], expected, np.abs(dy) * (2 + np.minimum(np.abs(np.nan_to_num(wide)), 20)))


def check_softmax(seed: int) -> None:
    """Run SoftmaxBackward on rows of random numbers."""
    random = np.random.default_rng(seed)
    shape = (*(int(side) for side in random.integers(1, 7, size=random.integers(0, 4))), int(random.integers(1, 300)))
    logits, kind = 3 * random.standard_normal(shape), str(random.choice(KINDS))
    y = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)
    dy = spoiled(random, shape, kind)
    with np.errstate(all="ignore"):
        made = run("SoftmaxBackward", {"dy": dy, "y": y}, ["dx"], {})
        products = dy.astype(np.float64) * y
        dx = y * (dy - products.sum(-1, keepdims=True))
        agree("dx", made["dx"], dx, y * (np.abs(dy) + 2 * np.abs(products).sum(-1, keepdims=True)))
