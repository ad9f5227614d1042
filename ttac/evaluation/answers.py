"""The answers of a model, and their error against labels, by the head of a bundle.

| head              | answer of a sample       | error                                                    |
|-------------------|--------------------------|----------------------------------------------------------|
| `classes`         | a class                  | fraction of wrong classes                                |
| `binary`, `dense` | a class at each position | fraction of wrong positions                              |
| `ctc`             | a text                   | character error rate, by jiwer                           |
| `detection`       | boxes with classes       | 1 - mAP of COCO, IoU 0.5 to 0.95, by pycocotools         |
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ttac.errors import UnsupportedError, UsageError
from ttac.evaluation.boxes import boxes_of, precision_error
from ttac.evaluation.metrics import Predictions, predictions
from ttac.evaluation.texts import character_errors, decoded
from ttac.runtime.manifest import parse_manifest
from ttac.runtime.records import HeadSpec
from ttac.samples.box_outputs import COORDINATES, BoxOutput, box_outputs
from ttac.samples.predictions import (
    CLASSES,
    counted_positions,
    decisions,
    entropies,
    is_binary,
    probabilities,
    samples_first,
    scores,
    unpadded,
)

ERROR = "error"
FORMS = {
    "classes": "one class for each sample, [n]",
    "ctc": "the classes of each text, [n, longest], filled up with -1",
    "detection": "boxes (class, centre x, centre y, width, height), [n, most, 5], filled up with -1",
}
"""Kind of head -> the form of its labels."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The meaning of an output in an evaluation.

    Attributes:
        head: the head of the output, with the samples on the first axis.
        output, axis: name of the output, and its axis with the samples.
        count: number of classes.
        boxes: the output with the boxes of a detector that gives them apart from the scores; else None.
    """

    head: HeadSpec
    output: str
    axis: int
    count: int
    boxes: BoxOutput | None = None

    @property
    def figure(self) -> str:
        """Name of the error."""
        return {"ctc": "character error", "detection": "1 - mAP"}.get(self.head.kind, ERROR)

    def read(self, outputs: Any, feeds: Any = None) -> Predictions:
        """Return the predictions of n samples from the outputs of a step; a sample that is not finite is uncertain.

        A position of padding, by the mask in the `feeds` of the step, has the answer -1 and counts for nothing.
        """
        array = np.moveaxis(outputs[self.output] if isinstance(outputs, Mapping) else outputs, self.axis, 0)
        is_share = self.head.values == "probabilities"
        if self.head.kind == "classes":
            return predictions(np.log(np.maximum(array, np.finfo(np.float32).tiny)) if is_share else array)
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        uniform = float(is_share and not is_binary(scores(array, self.head).shape, self.head))
        array = np.where(finite.reshape(-1, *[1] * (array.ndim - 1)), array, uniform)
        sure = probabilities(array, self.head).max(axis=-1)
        counted = counted_positions(array, self.head, feeds)
        entropy = _mean(entropies(array, self.head), counted)
        if self.boxes is not None:
            return Predictions(self._found(array, self.boxes.read(outputs)), _mean(sure, counted), entropy)
        answers = self._answers(array)
        answers = np.where(unpadded(feeds, self.head, sure.shape), answers, -1) if self.head.mask else answers
        return Predictions(answers, _mean(sure, counted), entropy)

    def wrong(self, answers: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        """Return the errors of answers against the labels of the same samples, and the number that they are out of."""
        if self.head.kind == "ctc":
            return character_errors(answers, labels)
        if self.head.kind == "detection":
            return precision_error(answers, labels)
        if labels.size != answers.size:
            problem = (
                f"labels of {len(labels)} samples have shape {list(labels.shape)}, the answers {list(answers.shape)}"
            )
            raise UsageError(problem, where="array `labels`", hint="give one label for each prediction, or no labels")
        labels = labels.reshape(answers.shape)
        counted = (labels >= 0) & (labels < self.count) & (answers >= 0)
        return int(((answers != labels) & counted).sum()), int(counted.sum())

    def codes(self, answers: np.ndarray) -> np.ndarray:
        """Return whole numbers that are equal where answers are: of texts, of the surest boxes' classes, or of all."""
        if self.head.kind == "ctc":
            return np.array([zlib.crc32(row.tobytes()) for row in answers], np.int64)
        return answers[:, 0, 0].astype(np.int64) if self.head.kind == "detection" else answers

    def check_labels(self, labels: np.ndarray, where: str) -> None:
        """Raise UsageError for labels of another form, or of classes that the model does not have."""
        ranks = {"classes": 1, "ctc": 2, "detection": 3}
        rank = ranks.get(self.head.kind, labels.ndim)
        if labels.ndim != rank or (self.head.kind == "detection" and labels.shape[-1] != 1 + COORDINATES):
            problem = f"the labels have shape {list(labels.shape)}, and the head `{self.head.kind}` needs another"
            raise UsageError(problem, where=where, hint=f"give {FORMS[self.head.kind]}, or no labels")
        highest = int((labels[..., 0] if self.head.kind == "detection" else labels).max())
        if highest >= self.count and self.head.kind != "dense":
            problem = f"there is a label {highest}, the model has {self.count} classes"
            hint = "number the classes from 0 in the order of the model's outputs"
            raise UsageError(problem, where=where, hint=hint)

    def _answers(self, array: np.ndarray) -> np.ndarray:
        """Return the answers [n, ...] of finite outputs with the samples first."""
        head = self.head
        if head.kind == "ctc":
            assert head.ignored is not None
            return decoded(decisions(array, head), head.ignored)
        if head.kind != "detection":
            return decisions(array, head)
        parts = np.moveaxis(array, head.axis or 1, 1).astype(np.float32)
        return self._found(array, parts[:, head.first - COORDINATES : head.first].transpose(0, 2, 1))

    def _found(self, array: np.ndarray, centred: np.ndarray) -> np.ndarray:
        """Return the boxes that count, from their scores in `array` and all boxes [n, boxes, 4]."""
        head = self.head
        if head.axis is None:
            each = probabilities(array, head)[:, None, :, 0]
        elif head.values == "probabilities":
            each = np.moveaxis(scores(array, head), head.axis or 1, 1).copy()
        else:
            every = probabilities(array, head)
            is_each = is_binary(scores(array, head).shape, head)
            each = np.moveaxis(every[..., 0], head.axis or 1, 1) if is_each else np.moveaxis(every, -1, 1)
        if head.ignored is not None:
            each[:, head.ignored] = 0
        if head.objectness:
            each = each[:, 1:] * each[:, :1]
        return boxes_of(np.ascontiguousarray(centred, np.float32), np.ascontiguousarray(each, np.float32))


def _mean(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the mean over the counted positions of each sample, [n]; 0 for a sample without any."""
    values, counted = (each.reshape(len(values), -1) for each in (values, counted))
    mean: np.ndarray = np.where(counted, values, 0).sum(axis=1) / np.maximum(1, counted.sum(axis=1))
    return mean


def reading_of(manifest: Mapping[str, Any]) -> Reading:
    """Return the reading of a bundle's output.

    Raises UnsupportedError for an output without a head, or a detector without boxes.
    """
    parsed = parse_manifest(manifest)
    head, output = parsed.head, parsed.output
    if head is None and len(output.shape) == 2:
        head = CLASSES
    shape = f"shape {list(output.shape)}".replace("'", "")
    if head is None:
        problem = f"the predictions in the model's output of {shape} are unknown"
        raise UnsupportedError(problem, where=f"output `{output.name}`", hint="say how it is read: `--head`, `--axis`")
    apart = [spec for spec in parsed.outputs if spec.name == head.boxes]
    boxes = next((each for spec in apart for each in box_outputs(spec.name, spec.shape, spec.batch_axis or 0)), None)
    if head.kind == "detection" and head.first != COORDINATES and boxes is None:
        problem = "no output, or more than one, may hold the boxes of the scores: one of shape [N, boxes, 4] does"
        raise UnsupportedError(problem, where=f"output `{output.name}`", hint="stream it with `ttac run`")
    axis = output.batch_axis or 0
    first = samples_first(head, axis)
    size = output.shape[head.axis] if head.axis is not None else 1 if head.kind == "detection" else 2
    count = (head.count or size) if isinstance(head.count or size, int) else np.iinfo(np.int64).max
    if head.kind in ("binary", "dense") and (count == 1 or head.kind == "binary"):
        count = 2
    return Reading(head=first, output=output.name, axis=axis, count=int(count) - head.objectness, boxes=boxes)
