"""Random cases of the depthwise operators, compared with loops over taps in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.kernel_map_case import PoolCase, pool_case
from tests.support.kernel_norm_case import agree
from tests.support.kernel_reference import ACTIVATIONS, Norm
from tests.support.kernel_session import blocked, plain, run


def attributes_of(case: PoolCase) -> dict[str, Any]:
    """The attributes of the window."""
    return {"block": case.block, "kernel_shape": case.kernel, "strides": case.strides, "pads": case.pads}


def outs_of(case: PoolCase) -> list[int]:
    """Height and width of the output."""
    sizes = zip(case.shape[2:], case.kernel, case.strides, case.pads[:2], case.pads[2:], strict=True)
    return [(size + before + after - kernel) // stride + 1 for size, kernel, stride, before, after in sizes]


def reads(case: PoolCase, padded: np.ndarray, i: int, j: int) -> np.ndarray:
    """The view of the padded input that tap (i, j) reads."""
    height, width = outs_of(case)
    rows = slice(i, i + (height - 1) * case.strides[0] + 1, case.strides[0])
    return padded[:, :, rows, j : j + (width - 1) * case.strides[1] + 1 : case.strides[1]]


def convolved(case: PoolCase, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The depthwise convolution of x [N, C, H, W] with w [C, 1, kh, kw], in float64."""
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), case.pads[0::2], case.pads[1::2]])
    taps = np.ndindex(*case.kernel)
    return sum(reads(case, padded, i, j) * w[:, 0, i, j].reshape(-1, 1, 1) for i, j in taps)  # type: ignore[return-value]


def input_gradient(case: PoolCase, dy: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The transpose of `convolved`, in float64."""
    (top, left, bottom, right), (height, width) = case.pads, case.shape[2:]
    padded = np.zeros((*dy.shape[:2], height + top + bottom, width + left + right))
    for i, j in np.ndindex(*case.kernel):
        reads(case, padded, i, j)[...] += dy * w[:, 0, i, j].astype(np.float64).reshape(-1, 1, 1)
    return padded[:, :, top : top + height, left : left + width]


def check_input_gradient(seed: int) -> None:
    """Run one random case of DepthwiseInputGrad; AssertionError where a number is off."""
    case, random = pool_case(seed), np.random.default_rng(seed + 1)
    dy = random.standard_normal((*case.shape[:2], *outs_of(case))).astype(np.float32)
    w = random.standard_normal((case.shape[1], 1, *case.kernel)).astype(np.float32)
    attributes = {**attributes_of(case), "sizes": case.shape[2:]}
    found = run("DepthwiseInputGrad", {"dy": blocked(dy, case.block), "w": w}, ["dx"], attributes)
    error = input_gradient(case, np.abs(dy), np.abs(w))
    agree("dx", plain(found["dx"], case.block), input_gradient(case, dy, w), error)


def check_depthwise(seed: int) -> None:
    """Run one random case of DepthwiseForward and DepthwiseBackward; AssertionError where a number is off."""
    case, random = pool_case(seed), np.random.default_rng(seed + 1)
    acts = [str(act) for act in random.choice(list(ACTIVATIONS), 2)]
    w = random.standard_normal((case.shape[1], 1, *case.kernel)).astype(np.float32)
    bias = random.standard_normal(case.shape[1]).astype(np.float32) if random.random() < 0.5 else None
    first = _norm(random, random.standard_normal(case.shape).astype(np.float32), acts[0])
    attributes = {**attributes_of(case), **_attributes(first, "1"), **_attributes(first, "2"), "act2": acts[1]}
    inputs = {"x1": blocked(first.x, case.block), "scale1": first.scale, "bias1": first.bias, "w": w, "cb": bias}
    scale2, bias2 = (random.uniform(0.5, 1.5, case.shape[1]).astype(np.float32) for _ in range(2))
    made = run("DepthwiseForward", {**inputs, "scale2": scale2, "bias2": bias2}, [*FORWARD], attributes)
    x2 = plain(made["x2"], case.block)
    expected = convolved(case, first.forward(), w) + (first.each(bias) if bias is not None else 0)
    agree("x2", x2, expected, convolved(case, first.error * 2 + 1, np.abs(w)) + np.abs(expected))
    second = Norm(x=x2, scale=scale2, bias=bias2, residual=None, epsilon=1e-3, act=acts[1], low=-0.5, high=1.25)
    agree("y2", plain(made["y2"], case.block), second.forward(), second.error * 2 + 1)
    _agree_with_moments(made, first, second)
    dy = random.standard_normal(x2.shape).astype(np.float32)
    fed = {"dy2": blocked(dy, case.block), "x2": made["x2"], "x1": inputs["x1"], "w": w, "s1": first.scale}
    fed |= {"b1": first.bias, "m1": made["m1"], "v1": made["v1"], "s2": scale2, "b2": bias2}
    back = run("DepthwiseBackward", {**fed, "m2": made["m2"], "v2": made["v2"]}, [*BACKWARD], attributes)
    _agree_with_gradients(case, back, dy, w, first, second)


FORWARD = ("y2", "x2", "m1", "v1", "m2", "v2")
BACKWARD = ("dx1", "dscale1", "dbias1", "dscale2", "dbias2")


def _norm(random: np.random.Generator, x: np.ndarray, act: str) -> Norm:
    scale, bias = (random.uniform(0.5, 1.5, x.shape[1]).astype(np.float32) for _ in range(2))
    return Norm(x=x, scale=scale, bias=bias, residual=None, epsilon=1e-3, act=act, low=-0.5, high=1.25)


def _attributes(norm: Norm, suffix: str) -> dict[str, Any]:
    facts = {"epsilon": norm.epsilon, "act": norm.act, "low": norm.low, "high": norm.high}
    return {f"{name}{suffix}": value for name, value in facts.items()}


def _agree_with_moments(made: dict[str, np.ndarray], first: Norm, second: Norm) -> None:
    for norm, number in ((first, 1), (second, 2)):
        agree(f"mean{number}", made[f"m{number}"], norm.mean, np.abs(norm.x).max(norm.axes).astype(np.float64))
        agree(f"variance{number}", made[f"v{number}"], norm.variance, norm.variance + 1e-6)


def _agree_with_gradients(
    case: PoolCase, back: dict[str, np.ndarray], dy: np.ndarray, w: np.ndarray, first: Norm, second: Norm
) -> None:
    outer = second.backward(dy)
    dx2, error = outer["dx"]
    through = input_gradient(case, error + np.abs(dx2), np.abs(w))
    inner = first.backward(input_gradient(case, dx2, w), through)
    agree("dx1", plain(back["dx1"], case.block), *inner["dx"])
    for name in ("dscale", "dbias"):
        agree(f"{name}1", back[f"{name}1"], *inner[name])
        agree(f"{name}2", back[f"{name}2"], *outer[name])
