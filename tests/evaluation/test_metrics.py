"""Error, calibration, entropy and drift, against sums over single samples."""

from __future__ import annotations

import numpy as np
import pytest

from ttac.evaluation.metrics import (
    BINS,
    calibration_bins,
    drift,
    expected_calibration_error,
    merged,
    packed,
    predictions,
    unpacked,
)

LOGITS = np.random.default_rng(0).normal(0, 3, (200, 5)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 5, 200)


def test_predictions_are_those_of_the_softmax() -> None:
    made = predictions(LOGITS)
    for x, chosen, sure, entropy in zip(LOGITS, made.answers, made.confidence, made.entropy, strict=True):
        p = np.exp(x.astype(float)) / np.exp(x.astype(float)).sum()
        assert chosen == int(np.argmax(p)) and sure == pytest.approx(p.max())
        assert entropy == pytest.approx(-sum(q * np.log(q) for q in p))


def test_large_logits_do_not_overflow() -> None:
    made = predictions(np.array([[1e4, 0, -1e4]], np.float32))
    assert made.confidence[0] == 1 and made.entropy[0] == 0


def test_logits_that_are_not_finite_are_uniform() -> None:
    made = predictions(np.array([[np.nan, 1, 2, 3], [0, 9, 0, 0]], np.float32))
    assert made.confidence[0] == pytest.approx(0.25) and made.entropy[0] == pytest.approx(np.log(4))
    assert made.answers[1] == 1


def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    made = predictions(LOGITS)
    right = made.answers == LABELS
    expected = 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = [i for i, c in enumerate(made.confidence) if low <= c < high or (number == BINS - 1 and c == 1)]
        if inside:
            gap = np.mean([right[i] for i in inside]) - np.mean([made.confidence[i] for i in inside])
            expected += abs(gap) * len(inside) / len(LABELS)
    assert expected_calibration_error(np.array(calibration_bins(made.confidence, right))) == pytest.approx(expected)


def test_bins_of_parts_add_up() -> None:
    made = predictions(LOGITS)
    right = made.answers == LABELS
    halves = [calibration_bins(made.confidence[part], right[part]) for part in (slice(0, 90), slice(90, None))]
    np.testing.assert_allclose(merged(halves), calibration_bins(made.confidence, right))


def test_perfect_and_hopeless_calibration() -> None:
    sure = np.ones(10)
    assert expected_calibration_error(np.array(calibration_bins(sure, np.ones(10, bool)))) == 0
    assert expected_calibration_error(np.array(calibration_bins(sure, np.zeros(10, bool)))) == 1


def test_predicted_classes_as_text() -> None:
    classes = np.array([0, 3, 999, 70000])
    np.testing.assert_array_equal(unpacked(packed(classes)), classes)


def test_drift() -> None:
    assert drift(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 0])) == 0.5
