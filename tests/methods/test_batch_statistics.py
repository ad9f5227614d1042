"""The method bn and the statistics of a batch, step by step, against numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ttac
from tests.support.source_models import Weights, norm, saved, source
from tests.support.whole_models import (
    MODELS,
    Arrays,
    assert_close,
    compiled,
    parameters_of,
    refused,
    samples,
    state_of,
)
from ttac.errors import UnsupportedError, UsageError

TWO_NORMS = """
net (float[N,3,4,5] x) => (float[N,6] logits) {
  c = Conv (x, "conv.weight", "conv.bias")
  a = BatchNormalization <epsilon = 0.01> (c, "first.weight", "first.bias", "first.running_mean", "first.running_var")
  r = Relu (a)
  b = BatchNormalization (r, "second.weight", "second.bias", "second.running_mean", "second.running_var")
  s = Sigmoid (b)
  p = GlobalAveragePool (s)
  f = Flatten (p)
  logits = Gemm <transB = 1> (f, "fc.weight", "fc.bias")
}
"""
"""The first norm follows a Conv of its own, the second does not."""
WEIGHTS: Weights = {
    "conv.weight": (4, 3, 1, 1), "conv.bias": (4,), **norm("first", 4), **norm("second", 4), "fc.weight": (6, 4),
    "fc.bias": (6,),
}  # fmt: skip
EPS = {"first": 0.01, "second": 1e-5}
Moments = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def two_norms(tmp_path: Path) -> tuple[Path, Arrays]:
    """The file, and its weights in float64 by name."""
    random = np.random.default_rng(5)
    weights = {name: random.uniform(0.5, 1.5, size).astype(np.float32) for name, size in WEIGHTS.items()}  # type: ignore[arg-type]
    weights["fc.weight"] = random.normal(0, 4, (6, 4)).astype(np.float32)
    path = saved(source(TWO_NORMS, weights), tmp_path)
    return path, {name: array.astype(np.float64) for name, array in weights.items()}


def restated(w: Arrays, x: np.ndarray, policy: Callable[[str, Moments], Moments]) -> np.ndarray:
    """The net in numpy; `policy` maps a norm's batch mean and biased variance to the statistics of its normalisation."""

    def normalised(name: str, y: np.ndarray) -> np.ndarray:
        mean, var = policy(name, (y.mean((0, 2, 3)), y.var((0, 2, 3))))
        scale = w[f"{name}.weight"] / np.sqrt(var + EPS[name])
        return (y - mean[:, None, None]) * scale[:, None, None] + w[f"{name}.bias"][:, None, None]

    c = np.einsum("oi,nihw->nohw", w["conv.weight"][..., 0, 0], x) + w["conv.bias"][:, None, None]
    b = normalised("second", np.maximum(normalised("first", c), 0))
    pooled = (1 / (1 + np.exp(-b))).mean((2, 3))
    return pooled @ w["fc.weight"].T + w["fc.bias"]


def stored(w: Arrays, name: str) -> Moments:
    return w[f"{name}.running_mean"], w[f"{name}.running_var"]


def shifted(size: int, seed: int) -> np.ndarray:
    """Samples away from where the source statistics are."""
    return samples((3, 4, 5), size, seed) * np.float32(3) + np.float32(7)


def test_bn_normalises_with_the_batch(two_norms: tuple[Path, Arrays], tmp_path: Path) -> None:
    path, w = two_norms
    adapter = ttac.load(compiled(path, tmp_path, method="bn", batch=6))
    for seed, size in enumerate([6, 5, 1]):
        x = shifted(size, seed)
        np.testing.assert_allclose(adapter.step(x), restated(w, x, lambda _, batch: batch), rtol=0, atol=2e-5)
    assert not [name for name in state_of(adapter) if name.endswith((".scale", ".bias"))]


@pytest.mark.parametrize("prior", [0.0, 16.0, 3.5])
def test_bn_blends_with_the_source(prior: float, two_norms: tuple[Path, Arrays], tmp_path: Path) -> None:
    """mean = (N*source + n*batch)/(N + n) and the biased variance likewise; n counts samples, in the last batch too."""
    path, w = two_norms
    settings = {"statistics": "blend", "prior": prior}
    adapter = ttac.load(compiled(path, tmp_path, method="bn", batch=6, settings=settings))
    for seed, size in enumerate([6, 4, 1]):
        x = shifted(size, seed)

        def blended(name: str, batch: Moments, size: int = size) -> Moments:
            mean, var = ((prior * s + size * b) / (prior + size) for s, b in zip(stored(w, name), batch, strict=True))
            return mean, var

        np.testing.assert_allclose(adapter.step(x), restated(w, x, blended), rtol=0, atol=2e-5)


@pytest.mark.parametrize("guard", ["off", "on"])
def test_bn_follows_a_running_average(guard: str, two_norms: tuple[Path, Arrays], tmp_path: Path) -> None:
    """With the guard, a batch whose first norm is nearer to the source than to the averages starts from the source."""
    path, w = two_norms
    settings = {"statistics": "ema", "statistics_momentum": 0.3, "guard": guard, "guard_information": 0.0}
    adapter = ttac.load(compiled(path, tmp_path, method="bn", batch=6, settings=settings))
    running, restarts = {name: stored(w, name) for name in EPS}, list[bool]()

    def apart(first: Moments, second: Moments) -> float:
        """The squared distance of normal distributions, in units of the source; at most 2 deviations count."""
        (centre, variance), eps = stored(w, "first"), EPS["first"]
        deviation = np.sqrt(variance + eps)
        near = [np.clip(mean, centre - 2 * deviation, centre + 2 * deviation) for mean, _ in (first, second)]
        wide = [np.minimum(np.sqrt(var + eps), 2 * deviation) for _, var in (first, second)]
        return float((((near[0] - near[1]) ** 2 + (wide[0] - wide[1]) ** 2) / (variance + eps)).sum())

    def followed(name: str, batch: Moments) -> Moments:
        """An average whose batches lie within 2 deviations of the source, and within 3 of the average."""
        if name == "first":
            nearer = apart(batch, stored(w, name)) < apart(batch, running[name])
            restarts.append(guard == "on" and nearer)
        centre, variance = stored(w, name)
        mean, var = (centre, variance) if restarts[-1] else running[name]
        deviation = np.sqrt(variance + EPS[name])
        near = np.clip(batch[0], centre - 2 * deviation, centre + 2 * deviation)
        small = np.minimum(batch[1], 4 * deviation**2)
        change = np.clip(near - mean, -3 * deviation, 3 * deviation)
        running[name] = mean + 0.3 * change, var + 0.3 * np.minimum(small - var, 8 * var)
        return running[name]

    usual = [samples((3, 4, 5), size, seed) * np.float32(0.3) for seed, size in enumerate([6, 3], 8)]
    for x in (shifted(6, 0), shifted(6, 1), usual[0], shifted(6, 2), shifted(2, 3), usual[1]):
        before = dict(running)
        np.testing.assert_allclose(adapter.predict(x), restated(w, x, followed), rtol=0, atol=2e-5)
        running.update(before)
        np.testing.assert_allclose(adapter.step(x), restated(w, x, followed), rtol=0, atol=2e-5)
    assert restarts[::2] == [guard == "on" and back for back in (False, False, True, True, False, True)]
    state = state_of(adapter)
    for name, (mean, var) in running.items():
        np.testing.assert_allclose(state[f"{name}.mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(state[f"{name}.var"], var, rtol=1e-5)


def test_bn_averages_statistics_for_bake(two_norms: tuple[Path, Arrays], tmp_path: Path) -> None:
    """The state averages bounded means and unbiased variances, the source being the first batch; no step reads them."""
    path, w = two_norms
    adapter = ttac.load(compiled(path, tmp_path, method="bn", batch=6))
    running = {name: stored(w, name) for name in EPS}
    for batches, size in enumerate([6, 3, 6], 1):
        unbiased, weight = size * 20 / (size * 20 - 1), 1 / (batches + 1)

        def tracked(name: str, batch: Moments, unbiased: float = unbiased, weight: float = weight) -> Moments:
            (centre, variance), (mean, var) = stored(w, name), running[name]
            deviation = np.sqrt(variance + EPS[name])
            near = np.clip(batch[0], centre - 2 * deviation, centre + 2 * deviation)
            small = np.minimum(batch[1] * unbiased, 4 * deviation**2)
            running[name] = mean + weight * (near - mean), var + weight * (small - var)
            return batch

        x = shifted(size, batches)
        restated(w, x, tracked)
        adapter.step(x)
    state = state_of(adapter)
    for name, (mean, var) in running.items():
        np.testing.assert_allclose(state[f"{name}.mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(state[f"{name}.var"], var, rtol=1e-5)


@pytest.mark.parametrize("offset", [100.0, -30.0])
def test_statistics_survive_a_mean_far_from_zero(offset: float, tmp_path: Path) -> None:
    """E[x^2] - E[x]^2 cancels; the source statistics say where, and the input is shifted there."""
    text = """
    net (float[N,2,6,6] x) => (float[N,2] logits) {
      y = BatchNormalization (x, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
      s = Sigmoid (y)
      p = GlobalAveragePool (s)
      logits = Flatten (p)
    }"""
    x = samples((2, 6, 6), 4) * np.float32(0.5) + np.float32(offset)
    given = {"bn.running_mean": np.full(2, offset, np.float32), "bn.running_var": np.full(2, 0.25, np.float32)}
    weights: Weights = {"bn.weight": np.ones(2, np.float32), "bn.bias": np.zeros(2, np.float32), **given}
    adapter = ttac.load(compiled(saved(source(text, weights), tmp_path), tmp_path, method="bn", batch=4))
    exact = x.astype(np.float64)
    xhat = (exact - exact.mean((0, 2, 3), keepdims=True)) / np.sqrt(exact.var((0, 2, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(adapter.step(x), (1 / (1 + np.exp(-xhat))).mean((2, 3)), rtol=0, atol=1e-5)


def test_a_constant_background_does_not_blur_the_statistics(tmp_path: Path) -> None:
    """Sums of many equal numbers: adding them one after the other in float32 loses a part in ten thousand."""
    text = """
    net (float[N,1,64,64] x) => (float[N,4] logits) {
      y = BatchNormalization (x, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
      p = AveragePool <kernel_shape = [32,32], strides = [32,32]> (y)
      logits = Flatten (p)
    }"""
    ones, zeros = np.ones(1, np.float32), np.zeros(1, np.float32)
    weights: Weights = {"bn.weight": ones, "bn.bias": zeros, "bn.running_mean": zeros, "bn.running_var": ones}
    x = np.full((8, 1, 64, 64), 0.7123, np.float32)
    x[:, :, 20:40, 20:40] = samples((1, 20, 20), 8)
    adapter = ttac.load(compiled(saved(source(text, weights), tmp_path), tmp_path, method="bn", batch=8))
    exact = x.astype(np.float64)
    xhat = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    expected = xhat.reshape(8, 2, 32, 2, 32).mean((2, 4)).reshape(8, 4)
    np.testing.assert_allclose(adapter.step(x), expected, rtol=0, atol=1e-5)


def test_a_batch_of_one_behaves_as_instance_norm(two_norms: tuple[Path, Arrays], tmp_path: Path) -> None:
    path, w = two_norms
    adapter = ttac.load(compiled(path, tmp_path, method="tent", batch=1))
    assert (adapter.batch, adapter.smallest_batch) == (1, 1)
    x = shifted(1, 0)
    np.testing.assert_allclose(adapter.step(x), restated(w, x, lambda _, batch: batch), rtol=0, atol=2e-5)
    assert adapter.stats["rejected"] == 0


def test_one_value_per_channel_is_no_batch(tmp_path: Path) -> None:
    """A norm over [N, C] needs two samples for statistics of their own, in PyTorch too."""
    adapter = ttac.load(compiled(MODELS["signal"], tmp_path, batch=8))
    assert adapter.smallest_batch == 2
    with pytest.raises(UsageError, match="takes 2 to 8"):
        adapter.step(samples(adapter.input_shape, 1))
    assert np.isfinite(adapter.step(samples(adapter.input_shape, 2))).all()
    said = refused(UnsupportedError, MODELS["signal"], output=tmp_path / "b.ttac", batch=1)
    assert "`10`" in said and "`--batch 2`" in said and "`--set statistics=blend`" in said
    alone = ttac.load(compiled(MODELS["signal"], tmp_path, batch=1, settings={"statistics": "blend"}))
    first, second = (alone.step(samples(alone.input_shape, 1, seed)) for seed in (0, 1))
    assert np.abs(first - second).max() > 1e-2


def test_no_learning_rate_no_change(two_norms: tuple[Path, Arrays], tmp_path: Path) -> None:
    path, w = two_norms
    adapter = ttac.load(compiled(path, tmp_path, batch=6, settings={"lr": 0}))
    before = parameters_of(adapter)
    for seed in range(2):
        x = shifted(6, seed)
        np.testing.assert_allclose(adapter.step(x), restated(w, x, lambda _, batch: batch), rtol=0, atol=2e-5)
    assert_close(parameters_of(adapter), before, 0)


@pytest.mark.parametrize("method", ["tent", "sar"])
def test_a_batch_of_one_is_warned_of(method: str, tmp_path: Path) -> None:
    lines: list[str] = []
    for batch in (1, 2):
        ttac.compile(
            MODELS["resnet"], method=method, batch=batch, dry_run=True, output=tmp_path / "b.ttac", say=lines.append
        )
    warnings = [line for line in lines if "one sample gives batch norms poor statistics" in line]
    assert len(warnings) == 1
    assert "ttac methods" in warnings[0]
    assert "--set window=16" in warnings[0]
