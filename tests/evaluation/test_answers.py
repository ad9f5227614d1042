"""Answers other than a class: texts, boxes and positions, and their errors against a second implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.tiny_bundles import ema, read
from ttac.errors import UnsupportedError, UsageError
from ttac.evaluation.answers import Reading, reading_of
from ttac.evaluation.boxes import KEPT, boxes_of, precision_error
from ttac.evaluation.texts import character_errors, decoded
from ttac.runtime.records import HeadSpec

RANDOM = np.random.default_rng(0)


def reading(kind: str, count: int, axis: int = 1, samples: int = 0, **facts: Any) -> Reading:
    """Return a reading of logits, by default."""
    head = HeadSpec(**{"kind": kind, "axis": axis, "values": "logits", "count": count, **facts})
    return Reading(head=head, output="y", axis=samples, count=count)


def test_frames_become_a_text() -> None:
    frames = np.array([[0, 3, 3, 0, 3, 5, 5, 0], [0] * 8, [1, 2, 1, 2, 2, 2, 0, 2]])
    texts = decoded(frames, 0)
    assert [row[row >= 0].tolist() for row in texts] == [[3, 3, 5], [], [1, 2, 1, 2, 2]]


def edits(one: list[int], other: list[int]) -> int:
    """Levenshtein's distance, by its recursion (Wagner and Fischer, 1974)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def test_the_error_of_texts_is_the_edit_distance() -> None:
    pytest.importorskip("jiwer")
    labels, answers = RANDOM.integers(1, 6000, (20, 7)), RANDOM.integers(1, 4, (20, 9))
    answers[:, :5] = labels[:, 1:6]
    labels[3, 4:] = answers[5, 2:] = answers[6] = -1
    pairs = [(a[a >= 0].tolist(), b[b >= 0].tolist()) for a, b in zip(answers, labels, strict=True)]
    assert character_errors(answers, labels) == (sum(edits(a, b) for a, b in pairs), int((labels >= 0).sum()))


def test_texts_come_from_the_frames_of_the_second_axis() -> None:
    """An output [T, N, C] of log-probabilities."""
    logits = RANDOM.normal(size=(12, 3, 5)).astype(np.float32)
    read = reading("ctc", 5, 2, 1, ignored=0).read({"y": logits})
    np.testing.assert_array_equal(read.answers, decoded(logits.transpose(1, 0, 2).argmax(2), 0))
    p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(2, keepdims=True)
    counted = logits.argmax(2) != 0  # a blank frame counts for nothing, as in the loss
    assert 0 < counted.sum() < counted.size
    each = np.where(counted, -(p * np.log(p)).sum(2), 0).sum(0) / counted.sum(0)
    np.testing.assert_allclose(read.entropy, each, rtol=1e-6)


def test_boxes_are_kept_as_by_a_loop_over_pairs() -> None:
    centred = np.concatenate([RANDOM.uniform(20, 80, (2, 40, 2)), RANDOM.uniform(10, 40, (2, 40, 2))], 2)
    scores = RANDOM.uniform(0, 1, (2, 3, 40)).astype(np.float32)
    kept = boxes_of(centred.astype(np.float32), scores)
    for image in range(2):
        expected = []
        for kind in range(3):
            chosen: list[int] = []
            for box in scores[image, kind].argsort()[::-1]:
                if all(overlap(centred[image, box], centred[image, other]) <= 0.7 for other in chosen):
                    chosen.append(int(box))
            expected += [(scores[image, kind, box], kind, box) for box in chosen]
        expected = sorted(expected, reverse=True)[:KEPT]
        found = kept[image][kept[image, :, 0] >= 0]
        assert len(found) == len(expected) and len(expected) > 60
        for row, (score, kind, box) in zip(found, expected, strict=True):
            np.testing.assert_allclose(row, [kind, *centred[image, box], score], rtol=1e-6)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two centred boxes."""
    sides = np.minimum(one[:2] + one[2:] / 2, other[:2] + other[2:] / 2) - np.maximum(
        one[:2] - one[2:] / 2, other[:2] - other[2:] / 2
    )
    both = float(sides.clip(0).prod())
    return both / float(one[2:].prod() + other[2:].prod() - both)


def test_the_error_of_boxes_of_three_images() -> None:
    """Precision 1, 1/2 and 0 of three classes with one object each, at every overlap."""
    pytest.importorskip("pycocotools")
    labels = np.full((3, 2, 5), -1, np.float32)
    labels[:, 0] = [[0, 20, 20, 10, 10], [1, 20, 20, 10, 10], [2, 20, 20, 10, 10]]
    answers = np.full((3, 4, 6), -1, np.float32)
    answers[0, 0] = [0, 20, 20, 10, 10, 0.9]
    answers[1, :2] = [[1, 60, 60, 10, 10, 0.9], [1, 20, 20, 10, 10, 0.8]]
    wrong, counted = precision_error(answers, labels)
    assert (wrong, counted) == (pytest.approx(3 * (1 - (1 + 0.5 + 0) / 3)), 3)
    assert precision_error(answers[:, 2:], labels) == (3.0, 3) and precision_error(answers, labels[:, 1:]) == (0.0, 0)


def test_the_error_of_boxes_is_that_of_another_package() -> None:
    pytest.importorskip("pycocotools")
    other = pytest.importorskip("faster_coco_eval")
    count = 30
    labels = np.concatenate(
        [RANDOM.integers(0, 3, (count, 4, 1)), RANDOM.uniform(20, 80, (count, 4, 2)), RANDOM.uniform(10, 30, (count, 4, 2))], 2
    ).astype(np.float32)  # fmt: skip
    answers = np.full((count, 8, 6), -1, np.float32)
    answers[:, :4, :5] = labels
    answers[:, :4, 1:5] += RANDOM.normal(0, 2, (count, 4, 4))
    answers[:, 4:6, :5] = labels[:, :2] + [1, 0, 0, 0, 0]
    answers[:, :6, 5] = RANDOM.uniform(0, 1, (count, 6))
    truth = other.COCO({
        "images": [{"id": i} for i in range(count)], "categories": [{"id": k} for k in range(3)],
        "annotations": [
            {"id": 1 + 4 * i + j, "image_id": i, "category_id": int(k), "bbox": [x - w / 2, y - h / 2, w, h], "area": w * h,
             "iscrowd": 0}
            for i in range(count) for j, (k, x, y, w, h) in enumerate(labels[i].tolist())
        ],
    })  # fmt: skip
    found = [
        {"image_id": i, "category_id": int(k), "bbox": [x - w / 2, y - h / 2, w, h], "score": score}
        for i in range(count) for k, x, y, w, h, score in answers[i].tolist() if k >= 0
    ]  # fmt: skip
    judged = other.COCOeval_faster(truth, truth.loadRes(found), "bbox", print_function=lambda *_: None)
    judged.run()
    wrong, counted = precision_error(answers, labels)
    assert 0.2 < wrong / counted < 0.9 and wrong / counted == pytest.approx(1 - judged.stats[0], abs=1e-6)


@pytest.mark.parametrize("objectness", [False, True])
def test_the_score_of_an_object_multiplies_those_of_classes(objectness: bool) -> None:
    output = RANDOM.uniform(0.05, 0.95, (2, 6 + 3, 5)).astype(np.float32)
    output[:, :4] = np.arange(20).reshape(4, 5) * 50 + 10
    made = reading("detection", 5, values="probabilities", first=4, objectness=objectness).read({"y": output})
    scores = output[:, 5:] * output[:, 4:5] if objectness else output[:, 4:]
    np.testing.assert_allclose(made.answers[:, 0, 5], scores.reshape(2, -1).max(1))


def test_positions_without_a_class_do_not_count() -> None:
    logits = RANDOM.normal(size=(3, 4, 5, 6)).astype(np.float32)
    read = reading("dense", 4)
    answers, labels = read.read({"y": logits}).answers, RANDOM.integers(0, 4, (3, 5, 6))
    labels[:, 0] = 255
    assert read.wrong(answers, labels) == (int((logits.argmax(1) != labels)[:, 1:].sum()), 3 * 4 * 6)


@pytest.mark.parametrize(
    ("kind", "labels", "words"),
    [
        ("ctc", np.zeros(3, int), "give the classes of each text"),
        ("ctc", np.full((3, 2), 9), "a label 9, the model has 5 classes"),
        ("detection", np.zeros((3, 2, 4)), "give boxes"),
        ("classes", np.zeros((3, 2), int), "give one class for each sample"),
    ],
)
def test_labels_of_another_form_are_refused(kind: str, labels: np.ndarray, words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        reading(kind, 5).check_labels(labels, "`x.npz`")
    assert words in str(refusal.value)


def test_outputs_without_a_reading_are_refused(tmp_path: Path) -> None:
    manifest = read(ema(tmp_path / "tiny.ttac"))
    manifest["head"] = {"output": "logits", "kind": "detection", "axis": 1, "values": "logits", "ignored": 0}
    with pytest.raises(UnsupportedError, match="may hold the boxes of the scores"):
        reading_of(manifest)
    manifest |= {"head": None, "outputs": [{**manifest["outputs"][0], "shape": ["N", 2, 2]}]}
    with pytest.raises(UnsupportedError, match="are unknown"):
        reading_of(manifest)
