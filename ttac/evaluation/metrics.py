"""What predictions are worth: error, calibration, entropy, and how far they drifted from the source model's."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 15
"""Bins of equal width that confidences fall into (Guo et al., arXiv:1706.04599)."""


@dataclass(frozen=True)
class Predictions:
    """Per sample: the most likely class, its probability, and the entropy of all probabilities in nats."""

    classes: np.ndarray
    confidence: np.ndarray
    entropy: np.ndarray


def predictions(logits: np.ndarray) -> Predictions:
    """Logits [n, classes] -> predictions of n samples; the softmax is computed in float64.

    Logits that are not finite count as a uniform distribution: a model that says nothing is certain of nothing.
    """
    logits = np.where(np.isfinite(logits).all(axis=-1, keepdims=True), logits, 0)
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    p = np.exp(log_p)
    return Predictions(logits.argmax(axis=-1), p.max(axis=-1), -(p * log_p).sum(axis=-1))


def calibration_bins(confidence: np.ndarray, right: np.ndarray) -> list[list[float]]:
    """For each of `BINS` bins of confidence, the last one closed: samples, sum of confidences, right predictions."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums = [np.bincount(place, weights, minlength=BINS) for weights in (None, confidence, right.astype(float))]
    return [[int(n), float(total), int(hits)] for n, total, hits in zip(*sums, strict=True)]


def merged(bins: Sequence[Sequence[Sequence[float]]]) -> np.ndarray:
    """The bins of several parts of a stream as those of the whole, [BINS, 3]."""
    whole: np.ndarray = np.sum([np.asarray(part, np.float64) for part in bins], axis=0)
    return whole


def expected_calibration_error(bins: np.ndarray) -> float:
    """Mean over samples of |share of right predictions - mean confidence| of the sample's bin, in 0..1."""
    samples = bins[:, 0].sum()
    return float(np.abs(bins[:, 2] - bins[:, 1]).sum() / samples)


def packed(classes: np.ndarray) -> str:
    """Predicted classes as text."""
    return base64.b64encode(zlib.compress(classes.astype("<u4").tobytes())).decode("ascii")


def unpacked(text: str) -> np.ndarray:
    """The predicted classes that `packed` wrote."""
    classes: np.ndarray = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4")
    return classes


def drift(classes: np.ndarray, source: np.ndarray) -> float:
    """Share of samples whose predicted class is not the source model's, in 0..1."""
    return float(np.mean(classes != source))
