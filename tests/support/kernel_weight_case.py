"""Random cases of ConvWeightGrad, ReorderWeights the 8-bit saves and AdamStep, compared with NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.kernel_depthwise_case import attributes_of, outs_of, reads
from tests.support.kernel_map_case import BLOCKS, pool_case
from tests.support.kernel_norm_case import agree, spoiled
from tests.support.kernel_session import blocked, plain, run
from tests.support.kernel_sparse_case import PARTS
from ttac.runtime.reorder import reordered


def check_weight_gradient(seed: int, threads: int = 2) -> None:
    """Run ConvWeightGrad of a case; AssertionError where a number is further off than rounding explains."""
    case, random = pool_case(seed), np.random.default_rng(seed + 1)
    block, (samples, _, height, width) = case.block, case.shape
    narrow, group = bool(random.random() < 0.3), int(random.choice([1, 1, 2, 3]))
    whole = group > 1
    most = 16 if block * group <= 16 else 4  # sets of outputs, and of inputs
    outputs = group * block * int(random.integers(1, most)) - (0 if whole else int(random.integers(0, block)))
    inputs = (1 if narrow else block) * int(random.integers(1, most + 2)) - (0 if whole or narrow else block // 3)
    x = spoiled(random, (samples, group * inputs, height, width), case.kind)
    dy = random.standard_normal((samples, outputs, *outs_of(case))).astype(np.float32)
    attributes = {**attributes_of(case), "x_block": 1 if narrow else block, "group": group, "shape": [outputs, inputs]}
    fed = {"x": x if narrow else blocked(_filled(x, block), block), "dy": blocked(_filled(dy, block), block)}
    found = run("ConvWeightGrad", fed, ["dw"], attributes, threads)["dw"]
    with np.errstate(all="ignore"):
        expected, error = (_weight_gradient(case, *pair, group) for pair in ((x, dy), (np.abs(x), np.abs(dy))))
        agree("dw", found, expected, error)


def _filled(x: np.ndarray, block: int) -> np.ndarray:
    """`x` with zeros in the channels that complete its last block."""
    return np.pad(x, [(0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)])


def _weight_gradient(case: Any, x: np.ndarray, dy: np.ndarray, group: int) -> np.ndarray:
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), case.pads[0::2], case.pads[1::2]])
    outputs, inputs = dy.shape[1] // group, x.shape[1] // group
    dw = np.zeros((dy.shape[1], inputs, *case.kernel))
    for i, j in np.ndindex(*case.kernel):
        read = reads(case, padded, i, j).reshape(len(x), group, inputs, -1)
        products = _inside(read, dy.astype(np.float64).reshape(len(x), group, outputs, -1), case, i, j)
        dw[:, :, i, j] = products.reshape(dy.shape[1], inputs)
    return dw


def _inside(read: np.ndarray, dy: np.ndarray, case: Any, i: int, j: int) -> np.ndarray:
    """Sums of the products [group, outputs, inputs] over the places that the tap reads inside of the input."""
    real = np.pad(np.ones((1, 1, *case.shape[2:]), bool), [(0, 0), (0, 0), case.pads[0::2], case.pads[1::2]])
    places = reads(case, real, i, j).reshape(-1)
    return np.einsum("ngop,ngip->goi", dy[..., places], read[..., places])


def check_reorder(seed: int) -> None:
    """Run ReorderWeights of a case; AssertionError where it differs from `ttac.runtime.reorder`."""
    random = np.random.default_rng(seed)
    block, groups = int(random.choice(BLOCKS)), int(random.choice([0, 1, 2, 3]))
    inputs = int(random.integers(1, 40))
    outputs = max(groups, 1) * int(random.integers(1, 20))
    kernel = [int(size) for size in random.integers(1, 5, 2)]
    w = random.standard_normal((outputs, inputs, *kernel)).astype(np.float32)
    taps = [[int(tap) for tap in random.permutation(size)[: random.integers(1, size + 1)]] for size in kernel]
    order = str(random.choice(["OIHWBiBo", "OIHWBo"]))
    attributes: dict[str, Any] = {"block": block, "groups": groups, "inputs_in_blocks": int(order == "OIHWBiBo")}
    chosen = random.random() < 0.7
    if chosen:
        attributes |= {"rows": taps[0], "columns": taps[1]}
    found = run("ReorderWeights", {"w": w}, ["made"], attributes)["made"]
    assert np.array_equal(found, reordered(w, block, order, taps if chosen else (), groups)), "made"


def check_rows(seed: int) -> None:
    """Run QuantizeRows, DequantizeRows and RestoreBlocks of a case; AssertionError where a number is off."""
    random = np.random.default_rng(seed)
    block, size = int(random.choice(BLOCKS)), int(random.choice([8, 9, 49, 64]))
    shape = (int(random.choice([1, 2, 5])), block * int(random.integers(1, 4)), int(random.integers(1, 5)), size)
    x = spoiled(random, shape, str(random.choice(["usual", "far", "constant", "nan", "denormal"])))
    with np.errstate(all="ignore"):
        _check_quantized(x, block)
        _check_restored(x, block, size, random)


def _check_quantized(x: np.ndarray, block: int) -> None:
    saved = run("QuantizeRows", {"x": blocked(x, block)}, ["taps", "scale", "bits"], {"block": block})
    rows = x.reshape(x.shape[0] * x.shape[1], -1).astype(np.float64)
    low, high = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
    scale = np.where(np.isfinite(rows).all(1), (high - low) / 255 + 1e-30, np.nan)
    agree("scale", saved["scale"], scale, scale)
    usual = np.isfinite(scale)
    assert (np.abs(saved["bits"][usual] + low[usual] / scale[usual]) <= 0.5 + 1e-3).all(), "zero"
    fed = {"values": saved["taps"], "scale": saved["scale"], "zero": saved["bits"]}
    found = plain(run("DequantizeRows", fed, ["x"], {"block": block})["x"], block).reshape(rows.shape)
    values = plain(saved["taps"], block).reshape(rows.shape).astype(np.float64)
    expected = (values - saved["bits"][:, None].astype(np.float64)) * saved["scale"][:, None].astype(np.float64)
    agree("x", found, expected, np.abs(expected))
    assert (np.abs(found - rows)[usual] <= 1.01 * scale[usual, None]).all(), "values"


def _check_restored(x: np.ndarray, block: int, size: int, random: np.random.Generator) -> None:
    ratio = np.array([random.choice([0.0, 0.3, 1.0])], np.float32)
    saved = run("KeepBlocks", {"x": blocked(x, block), "ratios": ratio}, PARTS, {"block": block, "size": size})
    attributes = {"block": block, "size": size, "sizes": list(x.shape[1:])}
    found = plain(run("RestoreBlocks", saved, ["x"], attributes)["x"], block)
    blocks = np.repeat(saved["means"][:, None], size, 1)
    blocks[saved["places"]] = saved["values"].astype(np.float32) * saved["scales"][:, None]
    assert np.array_equal(found, blocks.reshape(x.shape), equal_nan=True), "restored"


def check_adam(seed: int) -> None:
    """Run AdamStep of a case; AssertionError where a number is further off than rounding explains."""
    random = np.random.default_rng(seed)
    shape, kind = (int(random.integers(1, 4)), int(random.integers(1, 300))), str(random.choice(["usual", "nan"]))
    w, g = random.standard_normal(shape).astype(np.float32), spoiled(random, shape, kind)
    m, v = (random.standard_normal(w.size).astype(np.float32) for _ in range(2))
    v = np.square(v)
    rate, root = np.array(random.uniform(1e-4, 1e-1), np.float32), np.array([random.uniform(0.03, 1)], np.float32)
    settings = dict(zip(("decay1", "share1", "decay2", "share2", "epsilon"), (0.9, 0.1, 0.99, 0.01, 1e-8), strict=True))
    fed = {"w": w, "g": g, "m": m, "v": v, "rate": rate, "root": root}
    found = run("AdamStep", fed, ["next", "mean", "square"], settings)
    decay1, share1, decay2, share2, epsilon = (float(np.float32(number)) for number in settings.values())
    exact = g.reshape(-1).astype(np.float64)
    mean, square = m * decay1 + exact * share1, v * decay2 + exact**2 * share2
    step = mean / (np.sqrt(square) / float(root[0]) + epsilon) * float(rate)
    agree("mean", found["mean"], mean, np.abs(m) + np.abs(exact))
    agree("square", found["square"], square, square)
    error = np.abs(w) + (np.abs(m) + np.abs(exact)).reshape(shape) * np.abs(step / np.where(mean, mean, 1)).reshape(
        shape
    )
    agree("next", found["next"], w - step.reshape(shape), error)
