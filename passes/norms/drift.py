"""Measure how far the input of each norm drifts under disturbances of the model's input.

A norm whose input drifts has something to repair.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.sample_set import SampleSet
from ttac.passes.norms.calibration import Moments, statistics
from ttac.passes.norms.norm_sites import NormSite

STRENGTH = 0.5
"""Size of the disturbances, in standard deviations of the calibration data."""

DRIFT_SAMPLES = 64
"""Number of calibration samples that the drift is measured on."""
EPSILON = 1e-5
"""Added to the variance, so that a constant channel has a finite drift."""


def drifts(model: ir.Model, sites: Sequence[NormSite], samples: np.ndarray | SampleSet) -> list[float]:
    """Return the drift of every site: a mean over disturbances and channels, 0 for an input that does not move.

    A channel's drift is the squared Wasserstein distance of two normal distributions, in units of the variance on
    undisturbed data: ((m' - m)^2 + (s' - s)^2)/s^2. Mean m and deviation s are those on undisturbed data, m' and s'
    those under a disturbance. The first term alone is the squared Mahalanobis distance of the means.

    Args:
        samples: calibration data, float32 [n, ...], or for all inputs; the first 64 are used.
    """
    values = list(dict.fromkeys(site.x for site in sites))
    few = SampleSet.of(model, samples).first(DRIFT_SAMPLES)
    source = statistics(model, few, values)
    disturbed = [statistics(model, few.with_main(version), values) for version in disturbances(few.main)]
    names = [str(site.x.name) for site in sites]
    return [float(np.mean([_distance(source[name], moments[name]) for moments in disturbed])) for name in names]


def _distance(source: Moments, shifted: Moments) -> float:
    (mean, var), (other, wide) = ((m.astype(np.float64), v.astype(np.float64)) for m, v in (source, shifted))
    apart = (other - mean) ** 2 + (np.sqrt(wide) - np.sqrt(var)) ** 2
    return float(np.mean(apart / (var + EPSILON)))


def disturbances(samples: np.ndarray) -> list[np.ndarray]:
    """Return the samples [n, C, ...] in four versions, each like a disturbance of a sensor.

    The versions are noise, an added constant (light, offset), half the contrast, and averaged neighbours (blur, a
    slow sensor).
    """
    size = float(samples.std()) * STRENGTH
    noise = np.random.default_rng(0).standard_normal(samples.shape).astype(np.float32)
    axes = tuple(range(1, samples.ndim))
    mean = samples.mean(axis=axes, keepdims=True)
    versions = [samples + size * noise, samples + size, mean + (1 - STRENGTH) * (samples - mean), _blurred(samples)]
    return [version.astype(np.float32) for version in versions]


def _blurred(samples: np.ndarray) -> np.ndarray:
    """Average each value with its neighbours along every axis behind the channels; the edges repeat."""
    for axis in range(2, samples.ndim):
        ends = [(1, 1) if i == axis else (0, 0) for i in range(samples.ndim)]
        wide, length = np.pad(samples, ends, mode="edge"), samples.shape[axis]
        parts = [np.take(wide, range(start, start + length), axis=axis) for start in range(3)]
        samples = (parts[0] + parts[1] + parts[2]) / 3
    return samples
