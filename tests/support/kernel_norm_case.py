"""Random cases of NormForward and NormBackward, compared with the references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.kernel_reference import ACTIVATIONS, EPS, Norm
from tests.support.kernel_session import blocked, plain, run

TIMES = 16
"""Rounding errors allowed, as a multiple of the bound of one."""
KINDS = ("usual", "usual", "usual", "far", "constant", "nan", "infinite", "denormal")


@dataclass(frozen=True, kw_only=True)
class NormCase:
    """Everything that one case is made of; `kind` says how x was spoiled."""

    seed: int
    shape: tuple[int, ...]
    block: int
    act: str
    kind: str
    residual: bool
    given: bool
    mask: bool
    more: bool
    outputs: tuple[str, ...]


def norm_case(seed: int) -> NormCase:
    """Return a random case; the same seed makes the same case."""
    random = np.random.default_rng(seed)
    block = int(random.choice([1, 2, 4, 8, 16]))
    channels = block * int(random.integers(1, 4)) if block > 1 else int(random.integers(1, 40))
    sides = [int(side) for side in random.choice([1, 2, 3, 5, 7, 8, 13, 20, 33, 70], size=random.integers(0, 3))]
    act = str(random.choice(list(ACTIVATIONS)))
    wanted = [name if random.random() < 0.7 else "" for name in ("dx", "dscale", "dbias", "du")]
    return NormCase(
        seed=seed,
        shape=(int(random.choice([1, 2, 3, 8])), channels, *sides),
        block=block,
        act=act,
        kind=str(random.choice(KINDS)),
        residual=bool(random.random() < 0.4),
        given=bool(random.random() < 0.2),
        mask=act in ("relu", "clip") and bool(random.random() < 0.5),
        outputs=tuple(wanted) if any(wanted) else ("dx", "", "", ""),
        more=bool(random.random() < 0.4),
    )


def spoiled(random: np.random.Generator, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Return random float32 values of a kind."""
    x = random.standard_normal(shape).astype(np.float32)
    if kind == "far":
        x += np.float32(random.choice([-300, 1000]))
    if kind == "constant":
        x[:] = 3.7
    if kind == "denormal":
        x *= np.float32(1e-40)
    if kind in ("nan", "infinite"):
        places = random.random(shape) < 1 / x.size + 0.01
        x[places] = np.nan if kind == "nan" else random.choice([-np.inf, np.inf])
    return x


def bits_of(mask: np.ndarray, block: int) -> np.ndarray:
    """The mask with one bit an element, in the order of the memory; each block of channels begins with a byte."""
    samples, channels = mask.shape[:2]
    runs = blocked(mask, block).reshape(samples * channels // block, -1)
    return np.packbits(runs, axis=1, bitorder="little").reshape(samples, -1)


def check_norm(case: NormCase, threads: int = 2) -> None:
    """Run both operators of a case; AssertionError where a number is further off than rounding explains."""
    random = np.random.default_rng(case.seed + 1)
    x = spoiled(random, case.shape, case.kind)
    channels = case.shape[1]
    scale = random.uniform(-1.5, 1.5, channels).astype(np.float32)
    bias = random.standard_normal(channels).astype(np.float32)
    residual = random.standard_normal(case.shape).astype(np.float32) if case.residual else None
    given = None
    if case.given:
        given = (random.standard_normal(channels).astype(np.float32), random.uniform(0, 2, channels).astype(np.float32))
    low, high = -0.5, 1.25
    with np.errstate(all="ignore"):
        norm = Norm(
            x=x, scale=scale, bias=bias, residual=residual, epsilon=1e-3, act=case.act, low=low, high=high, given=given
        )
        found = _forward(case, norm, threads)
        dy = random.standard_normal(case.shape).astype(np.float32)
        dy[norm.near_a_corner(TIMES)] = 0
        more = random.standard_normal(case.shape).astype(np.float32) if case.more else None
        _backward(case, norm, dy, more, found, threads)


def attributes(case: NormCase, norm: Norm) -> dict[str, Any]:
    """The attributes of both nodes."""
    return {
        "block": case.block,
        "epsilon": norm.epsilon,
        "act": case.act,
        "low": norm.low,
        "high": norm.high,
        "statistics": "given" if case.given else "batch",
    }


def _forward(case: NormCase, norm: Norm, threads: int) -> dict[str, np.ndarray | None]:
    order = blocked(norm.residual, case.block) if norm.residual is not None else None
    inputs = {"x": blocked(norm.x, case.block), "scale": norm.scale, "bias": norm.bias, "residual": order}
    if norm.given:
        inputs |= {"mean": norm.given[0], "variance": norm.given[1]}
    outputs = ["y", "m", "v", "mask"] if case.mask else ["y", "m", "v"]
    made = run("NormForward", inputs, outputs, attributes(case, norm), threads)
    if case.mask:
        packed = run("NormForward", inputs, ["y", "m", "v", "", "bits"], attributes(case, norm), threads)
        assert np.array_equal(packed["bits"], bits_of(plain(made["mask"], case.block), case.block)), "bits"
    if case.mask:
        known = ~norm.near_a_corner(TIMES)
        assert np.array_equal(plain(made["mask"], case.block)[known], norm.mask()[known]), "mask"
    agree("y", plain(made["y"], case.block), norm.forward(), norm.error * 2 + 1)
    agree("mean", made["m"], norm.mean, np.abs(norm.x).max(norm.axes).astype(np.float64))
    squares = np.square(norm.x.astype(np.float64)).max(norm.axes) * EPS
    agree("variance", made["v"], norm.variance, norm.variance + squares)
    return {**inputs, "mean": made["m"], "variance": made["v"], "mask": made.get("mask")}


def _backward(
    case: NormCase,
    norm: Norm,
    dy: np.ndarray,
    more: np.ndarray | None,
    found: dict[str, np.ndarray | None],
    threads: int,
) -> None:
    names = ("x", "scale", "bias", "mean", "variance", "mask", "residual")
    inputs = {"dy": blocked(dy, case.block), **{name: found[name] for name in names}, "bits": None}
    if more is not None:
        inputs["more"] = blocked(more, case.block)
    if case.mask:
        inputs |= {"bias": None, "residual": None}
    made = run("NormBackward", inputs, list(case.outputs), attributes(case, norm), threads)
    if case.mask:
        mask = found["mask"]
        assert mask is not None
        inputs |= {"mask": None, "bits": bits_of(plain(mask, case.block), case.block)}
        packed = run("NormBackward", inputs, list(case.outputs), attributes(case, norm), threads)
        assert all(np.array_equal(packed[name], made[name], equal_nan=True) for name in made), "with bits"
    for name, (expected, error) in norm.backward(dy, more=more).items():
        if name in made:
            array = plain(made[name], case.block) if name in ("dx", "du") else made[name]
            agree(name, array, expected, error)


def agree(name: str, found: np.ndarray, expected: np.ndarray, error: np.ndarray) -> None:
    """Values agree where they are finite, and are finite at the same places."""
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    usual = np.isfinite(expected)
    assert np.array_equal(np.isfinite(found), usual), f"{name}: finite at other places"
    apart = np.abs(np.where(usual, found - expected, 0))
    allowed = TIMES * EPS * np.where(usual & ~np.isnan(error), error, 0) + 1e-30
    worst = float(np.where(apart > 0, apart / allowed, 0).max(initial=0))
    assert worst <= 1, f"{name}: an error of {float(apart.max()):.2e}, {worst:.1f} times the bound"
