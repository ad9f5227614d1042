"""Figures of predictions: classes, confidence, entropy, calibration, and drift from the source model."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 15
"""Number of confidence bins of equal width (Guo et al., arXiv:1706.04599)."""


@dataclass(frozen=True)
class Predictions:
    """Per sample: the answer, such as the most likely class; its probability; the entropy in nats.

    Answers of several positions, such as pixels, have further axes; probability and entropy are means over them.
    """

    answers: np.ndarray
    confidence: np.ndarray
    entropy: np.ndarray


def predictions(logits: np.ndarray) -> Predictions:
    """Return the predictions of n samples from logits [n, classes]; the softmax is computed in float64.

    Logits that are not finite count as a uniform distribution, the least certain one.
    """
    logits = np.where(np.isfinite(logits).all(axis=-1, keepdims=True), logits, 0)
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    p = np.exp(log_p)
    return Predictions(logits.argmax(axis=-1), p.max(axis=-1), -(p * log_p).sum(axis=-1))


def calibration_bins(confidence: np.ndarray, right: np.ndarray) -> list[list[float]]:
    """Return, for each of `BINS` bins, the number of samples, the sum of confidences and the right predictions.

    Bin i holds confidences from i/`BINS` up to, but without, (i + 1)/`BINS`; the last bin includes 1.
    """
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums = [np.bincount(place, weights, minlength=BINS) for weights in (None, confidence, right.astype(float))]
    return [[int(n), float(total), int(hits)] for n, total, hits in zip(*sums, strict=True)]


def merged(bins: Sequence[Sequence[Sequence[float]]]) -> np.ndarray:
    """Return the sum of the bins of several parts of a stream, [BINS, 3]."""
    whole: np.ndarray = np.sum([np.asarray(part, np.float64) for part in bins], axis=0)
    return whole


def expected_calibration_error(bins: np.ndarray) -> float:
    """Return the mean over samples of |fraction right - mean confidence| of the bin of the sample, in 0..1."""
    samples = bins[:, 0].sum()
    return float(np.abs(bins[:, 2] - bins[:, 1]).sum() / samples)


def packed(classes: np.ndarray) -> str:
    """Return predicted classes as text."""
    return base64.b64encode(zlib.compress(classes.astype("<u4").tobytes())).decode("ascii")


def unpacked(text: str) -> np.ndarray:
    """Return the predicted classes from the text of `packed`."""
    classes: np.ndarray = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4")
    return classes


def drift(classes: np.ndarray, source: np.ndarray) -> float:
    """Return the fraction of samples whose predicted class differs from the source model's, in 0..1."""
    return float(np.mean(classes != source))
