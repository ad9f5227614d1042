"""Random cases of MaxPoolForward, MaxPoolBackward and Interleave, compared with loops in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.support.kernel_norm_case import spoiled
from tests.support.kernel_session import blocked, plain, run

BLOCKS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class PoolCase:
    """Everything that one case of a pool is made of; `kind` says how x was spoiled."""

    seed: int
    shape: tuple[int, ...]
    block: int
    kind: str
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, ...]


def pool_case(seed: int) -> PoolCase:
    """Return a random case; the same seed makes the same case."""
    random = np.random.default_rng(seed)
    block = int(random.choice(BLOCKS))
    kernel = [int(size) for size in random.integers(1, 5, 2)]
    pads = [int(random.integers(0, size)) for size in (*kernel, *kernel)]
    least = [max(1, size - before - after) for size, before, after in zip(kernel, pads[:2], pads[2:], strict=True)]
    sides = [int(size + random.integers(0, 14)) for size in least]
    return PoolCase(
        seed=seed,
        shape=(int(random.choice([1, 2, 3])), block * int(random.integers(1, 4)), *sides),
        block=block,
        kind=str(random.choice(["usual", "usual", "equal", "infinite", "nan", "denormal"])),
        kernel=(kernel[0], kernel[1]),
        strides=(int(random.integers(1, 4)), int(random.integers(1, 4))),
        pads=tuple(pads),
    )


def max_pool(case: PoolCase, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return y and the number of the winning tap; the first of equals wins, and NaN wins over numbers."""
    padded = np.pad(x, [(0, 0), (0, 0), case.pads[0::2], case.pads[1::2]], constant_values=-np.inf)
    real = np.pad(np.ones(x.shape, bool), [(0, 0), (0, 0), case.pads[0::2], case.pads[1::2]])
    windows, inside = (
        np.lib.stride_tricks.sliding_window_view(array, case.kernel, (2, 3))[
            :, :, :: case.strides[0], :: case.strides[1]
        ].reshape(*x.shape[:2], *_outs(case), -1)
        for array in (padded, real)
    )
    rank = np.where(np.isnan(windows), np.inf, windows).astype(np.float64)
    rank = np.where(np.isnan(windows), 2.0, np.arctan(rank))  # below pi/2 and above it
    taps = np.where(inside, rank, -3.0).argmax(-1)
    return np.take_along_axis(windows, taps[..., None], -1)[..., 0], taps.astype(np.uint8)


def _outs(case: PoolCase) -> list[int]:
    sizes = zip(case.shape[2:], case.kernel, case.strides, case.pads[:2], case.pads[2:], strict=True)
    return [(size + before + after - kernel) // stride + 1 for size, kernel, stride, before, after in sizes]


def scattered(case: PoolCase, dy: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Each dy added at the position that its tap read, in float64."""
    dx = np.zeros(case.shape)
    for n, c, row, column in np.ndindex(*dy.shape):
        down, across = divmod(int(taps[n, c, row, column]), case.kernel[1])
        i, j = row * case.strides[0] - case.pads[0] + down, column * case.strides[1] - case.pads[1] + across
        dx[n, c, i, j] += dy[n, c, row, column]
    return dx


def check_pool(case: PoolCase) -> None:
    """Run both operators of a case; AssertionError where they disagree with the loops."""
    random = np.random.default_rng(case.seed + 1)
    x = random.integers(-2, 3, case.shape).astype(np.float32)
    if case.kind != "equal":
        x = spoiled(random, case.shape, case.kind)
    attributes = {"block": case.block, "kernel_shape": case.kernel, "strides": case.strides, "pads": case.pads}
    found = run("MaxPoolForward", {"x": blocked(x, case.block)}, ["y", "taps"], attributes)
    y, taps = max_pool(case, x)
    assert np.array_equal(plain(found["y"], case.block), y, equal_nan=True), "y"
    assert np.array_equal(plain(found["taps"], case.block), taps), "taps"
    dy = random.standard_normal(y.shape).astype(np.float32)
    inputs = {"dy": blocked(dy, case.block), "taps": found["taps"]}
    back = run("MaxPoolBackward", inputs, ["dx"], {**attributes, "sizes": case.shape[2:]})
    expected = scattered(case, dy, taps)
    assert np.allclose(plain(back["dx"], case.block), expected, rtol=1e-5, atol=1e-5), "dx"


def check_interleave(seed: int) -> None:
    """Run one random case of Interleave; AssertionError where it disagrees with strided assignments."""
    random = np.random.default_rng(seed)
    block = int(random.choice(BLOCKS))
    sizes = [int(size) for size in random.integers(1, 40, 2)]
    shape = (int(random.choice([1, 2, 3])), block * int(random.integers(1, 4)), *sizes)
    whole = random.standard_normal(shape).astype(np.float32)
    total = random.standard_normal(shape).astype(np.float32)
    phases = [(a, b) for a in (0, 1) for b in (0, 1)]
    there = {at: whole[:, :, at[0] :: 2, at[1] :: 2].size > 0 and random.random() < 0.8 for at in phases}
    with_sum = random.random() < 0.5 or not any(there.values())
    inputs = {f"p{a}{b}": _phase(whole, a, b, block) if there[a, b] else None for a, b in phases}
    inputs["sum"] = blocked(total, block) if with_sum else None
    expected = total.copy() if with_sum else np.zeros_like(whole)
    for a, b in phases:
        if there[a, b]:
            expected[:, :, a::2, b::2] += whole[:, :, a::2, b::2]
    found = run("Interleave", inputs, ["x"], {"block": block, "sizes": sizes})
    assert np.array_equal(plain(found["x"], block), expected), "x"


def _phase(whole: np.ndarray, a: int, b: int, block: int) -> np.ndarray:
    return blocked(np.ascontiguousarray(whole[:, :, a::2, b::2]), block)
