"""Random cases of KeepBlocks, SparseNormBackward and masks in bits, compared with NumPy in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.support.kernel_norm_case import agree, bits_of, spoiled
from tests.support.kernel_reference import EPS
from tests.support.kernel_session import blocked, plain, run

PARTS = ("values", "scales", "places", "means")


@dataclass(frozen=True, kw_only=True)
class SparseCase:
    """Everything that one case is made of.

    Attributes:
        size: elements of a kept block; a map has some of them.
        exact: whether dx reads kept blocks element by element.
        mask: "", "mask" for bytes, or "bits".
    """

    seed: int
    shape: tuple[int, int, int, int]
    block: int
    size: int
    ratio: float
    exact: bool
    mask: str
    kind: str
    outputs: tuple[str, ...]


def sparse_case(seed: int) -> SparseCase:
    """Return a random case; the same seed makes the same case."""
    random = np.random.default_rng(seed)
    block, size = int(random.choice([1, 2, 4, 8, 16])), int(random.choice([8, 9, 16, 49, 56, 64, 112, 128]))
    wanted = [name if random.random() < 0.7 else "" for name in ("dx", "dscale", "dbias", "du")]
    return SparseCase(
        seed=seed,
        shape=(int(random.choice([1, 2, 5])), block * int(random.integers(1, 4)), int(random.integers(1, 7)), size),
        block=block,
        size=size,
        ratio=float(random.choice([0.0, 0.05, 0.3, 0.7, 1.0])),
        exact=bool(random.random() < 0.3),
        mask=str(random.choice(["", "mask", "bits"])),
        kind=str(random.choice(["usual", "usual", "far", "constant", "nan", "denormal"])),
        outputs=tuple(wanted) if any(wanted) else ("dx", "", "", ""),
    )


def check_sparse(case: SparseCase, threads: int = 2) -> None:
    """Run both operators of a case; AssertionError where a number is further off than rounding explains."""
    random = np.random.default_rng(case.seed + 1)
    x = spoiled(random, case.shape, case.kind)
    ratios = np.array([0.0, case.ratio, case.ratio / 2], np.float32)
    attributes = {"block": case.block, "size": case.size}
    inputs = {"x": blocked(x, case.block), "ratios": ratios}
    with np.errstate(all="ignore"):
        saved = run("KeepBlocks", inputs, PARTS, {**attributes, "layers": [1, 2]}, threads)
        _check_saved(case, x, saved)
        _check_backward(case, x, saved, random, threads)


def places(count: int, ratio: float) -> np.ndarray:
    """The numbers of the kept blocks of `count`."""
    kept = int(np.floor(np.float32(count) * np.float32(ratio)))
    number = np.arange(kept)
    first, end = number * count // max(kept, 1), (number + 1) * count // max(kept, 1)
    return first + number * 40503 % 65536 * (end - first) // 65536


def _check_saved(case: SparseCase, x: np.ndarray, saved: dict[str, np.ndarray]) -> None:
    rows = x.reshape(-1, case.size).astype(np.float64)
    assert np.array_equal(saved["places"], places(len(rows), case.ratio)), "places"
    agree("means", saved["means"], rows.mean(1), np.abs(rows).mean(1) * 4)
    kept = rows[saved["places"]]
    scale = np.where(np.isfinite(kept).all(1), np.abs(kept).max(1, initial=0) / 127 + 1e-30, np.nan)
    agree("scales", saved["scales"], scale, scale)
    usual = np.isfinite(scale)
    apart = np.abs(saved["values"][usual] - kept[usual] / scale[usual, None])
    assert saved["values"].dtype == np.int8 and (apart <= 0.5 + 1e-3).all(), "values"


def _check_backward(
    case: SparseCase, x: np.ndarray, saved: dict[str, np.ndarray], random: np.random.Generator, threads: int
) -> None:
    channels = case.shape[1]
    scale, mean = (random.uniform(-1.5, 1.5, channels).astype(np.float32) for _ in range(2))
    reciprocal = random.uniform(0.5, 2, channels).astype(np.float32)
    dy, mask = random.standard_normal(case.shape).astype(np.float32), random.random(case.shape) < 0.6
    inputs: dict[str, np.ndarray | None] = {
        "dy": blocked(dy, case.block),
        **{name: saved[name] for name in PARTS},
        "single": np.array([len(saved["places"]) if case.exact else 0]),
        "norm_scale": scale,
        "norm_mean": mean,
        "reciprocal": reciprocal,
        "mask": blocked(mask, case.block) if case.mask == "mask" else None,
        "bits": bits_of(mask, case.block) if case.mask == "bits" else None,
    }
    made = run("SparseNormBackward", inputs, list(case.outputs), {"block": case.block, "size": case.size}, threads)
    du = np.where(mask, dy, 0) if case.mask else dy
    for name, (expected, error) in reference(case, saved, du, scale, mean, reciprocal).items():
        if name in made:
            array = plain(made[name], case.block) if name in ("dx", "du") else made[name]
            agree(name, array, expected, error)


def reference(
    case: SparseCase,
    saved: dict[str, np.ndarray],
    du: np.ndarray,
    scale: np.ndarray,
    mean: np.ndarray,
    reciprocal: np.ndarray,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Output name -> its values in float64, and a bound of their rounding errors as a multiple of EPS."""

    def each(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float64).reshape(1, -1, 1, 1)

    blocks = np.repeat(saved["means"].astype(np.float64)[:, None], case.size, 1)
    level = blocks.reshape(case.shape) - each(mean)
    blocks[saved["places"]] = saved["values"] * saved["scales"].astype(np.float64)[:, None]
    kept = blocks.reshape(case.shape) - each(mean)
    axes, count = (0, 2, 3), du.size // du.shape[1]
    total, dot = du.sum(axes, dtype=np.float64), (du * kept).sum(axes)
    dscale, slope = dot * reciprocal, each(scale) * each(reciprocal)
    linear = -slope * each(reciprocal) * each(dscale) / count
    apart = kept if case.exact else level
    dx = slope * du - slope * each(total) / count + apart * linear
    large = np.abs(kept) + 2 * np.abs(each(mean))
    sums, dots = np.abs(du).sum(axes), (np.abs(du) * large).sum(axes)
    error = np.abs(slope) * (np.abs(du) + each(sums) / count)
    error = (
        error + np.abs(slope) * each(reciprocal) ** 2 * each(dots) * (np.abs(apart) + 2 * np.abs(each(mean))) / count
    )
    return {
        "dx": (dx, 2 * error),
        "dscale": (dscale, 2 * dots * reciprocal),
        "dbias": (total, 2 * sums),
        "du": (du.astype(np.float64), np.abs(du) * EPS),
    }
