"""Entropies, predictions and errors, computed from outputs that a bundle's `head` describes.

Imports the standard library, numpy and the manifest's `HeadSpec` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ttac.errors import UsageError
from ttac.runtime.records import HeadSpec

CLASSES = HeadSpec(kind="classes", axis=1, values="logits")
"""The default reading of an output: logits of one class per sample along axis 1."""
BOXES = 100
"""Number of boxes of a sample, the most confident ones, that count for the entropy of a detector."""


def samples_first(head: HeadSpec, axis: int) -> HeadSpec:
    """Return the reading of an output whose samples move from `axis` to the first axis."""
    return replace(head, axis=head.axis + 1) if head.axis is not None and head.axis < axis else head


def entropies(outputs: np.ndarray, head: HeadSpec = CLASSES) -> np.ndarray:
    """Return the entropy of each prediction in nats, float64, with the shape of the outputs without the class axis."""
    return _entropy(*_logits(outputs, head))


def probabilities(outputs: np.ndarray, head: HeadSpec = CLASSES) -> np.ndarray:
    """Return the probabilities of each prediction, float64, along the last axis; a binary answer has two."""
    values, axis = _logits(outputs, head)
    values = np.moveaxis(values, axis, -1)
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    share: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return share


def _logits(outputs: np.ndarray, head: HeadSpec) -> tuple[np.ndarray, int]:
    """Return logarithms of the probabilities, up to a constant, and their axis; a binary answer has two, on axis -1."""
    values = scores(outputs, head).astype(np.float64)
    if is_binary(values.shape, head):
        return np.stack([values, np.zeros_like(values)], -1) if head.values == "logits" else np.log(_sided(values)), -1
    if head.values == "probabilities":
        with np.errstate(divide="ignore"):
            values = np.log(values)
    assert head.axis is not None
    return values, head.axis


def scores(outputs: np.ndarray, head: HeadSpec) -> np.ndarray:
    """Return the numbers of the outputs that are predictions, without the coordinates of boxes."""
    if head.axis is None or head.count is None:
        return outputs
    return np.asarray(outputs.take(range(head.first, head.first + head.count), axis=head.axis))


def is_binary(shape: tuple[int, ...], head: HeadSpec) -> bool:
    """Whether each score of an output is a separate yes-or-no answer; `shape` is that of the scores."""
    if head.kind == "detection" and head.ignored is None:
        return True
    return head.kind == "binary" or head.axis is None or shape[head.axis] == 1


def decisions(outputs: np.ndarray, head: HeadSpec = CLASSES) -> np.ndarray:
    """Return the class at each position, or 0 or 1 for each binary answer; a head axis with one entry disappears."""
    outputs = scores(outputs, head)
    if not is_binary(outputs.shape, head):
        return np.asarray(outputs.argmax(axis=head.axis))
    bound = {"logits": 0.0, "probabilities": 0.5, "log_probabilities": np.log(0.5)}[head.values]
    chosen: np.ndarray = (outputs > bound).astype(np.int64)
    return chosen if head.axis is None or outputs.shape[head.axis] > 1 else chosen.squeeze(head.axis)


def unpadded(feeds: Any, head: HeadSpec, shape: tuple[int, ...]) -> np.ndarray:
    """Return which positions of this `shape` are no padding, bool, by the mask of the head in the `feeds` of a step."""
    if not head.mask or not isinstance(feeds, Mapping):
        return np.ones(shape, bool)
    counted: np.ndarray = np.asarray(feeds[head.mask]).astype(bool) == head.counts
    return counted


def counted_positions(outputs: np.ndarray, head: HeadSpec, feeds: Any = None) -> np.ndarray:
    """Return which entropies of `entropies(outputs, head)` count, bool in their shape: those that a loss reads.

    Padding counts for nothing, and neither does a position whose class is the blank or the background.  Of a detector
    without a background, the `BOXES` most confident boxes of each sample count, and all others that are as confident
    as the last of them.
    """
    values = scores(outputs, head)
    if head.ignored is not None:
        return np.asarray(values.argmax(axis=head.axis) != head.ignored)
    if head.kind != "detection":
        each = values.shape
        if not is_binary(values.shape, head):
            each = tuple(size for axis, size in enumerate(values.shape) if axis != head.axis)
        return unpadded(feeds, head, each)
    confidence = _confidence(values, head)
    flat = confidence.reshape(len(confidence), -1)
    least = np.sort(flat, axis=1)[:, -min(BOXES, flat.shape[1])] if flat.size else np.zeros(len(flat))
    counted = confidence >= least.reshape(-1, *[1] * (confidence.ndim - 1))
    return counted if head.axis is None else np.broadcast_to(np.expand_dims(counted, head.axis), values.shape)


def _confidence(values: np.ndarray, head: HeadSpec) -> np.ndarray:
    """Return the confidence of each box from its independent scores: the largest, times that of any object."""
    parts = (values[..., None] if head.axis is None else np.moveaxis(values, head.axis, -1)).astype(np.float64)
    if head.values == "logits":
        parts = 0.5 * (1 + np.tanh(parts / 2))
    first = parts[..., 0] if head.objectness else 1.0
    confidence: np.ndarray = first * parts[..., int(head.objectness) :].max(axis=-1)
    return confidence


def counted_classes(outputs: np.ndarray, head: HeadSpec, feeds: Any = None) -> np.ndarray:
    """Return the classes at the positions that count, int64 [positions]; of a box, the class of its largest score."""
    counted, values = counted_positions(outputs, head, feeds), scores(outputs, head)
    if head.kind != "detection" or head.axis is None or head.ignored is not None:
        chosen = decisions(outputs, head)
        return np.asarray(chosen[counted.reshape(chosen.shape) if counted.size == chosen.size else counted])
    parts = np.moveaxis(values, head.axis, -1)[..., int(head.objectness) :]
    return np.asarray(parts.argmax(axis=-1)[counted.take(0, axis=head.axis)])


@dataclass(kw_only=True)
class Tally:
    """Predictions counted batch by batch.

    Attributes:
        entropy: sum of the entropies of `answers` predictions, in nats.
        wrong: number of predictions that differ from their label, among `labelled` predictions with a label.
    """

    head: HeadSpec = CLASSES
    entropy: float = 0.0
    answers: int = 0
    wrong: int = 0
    labelled: int = 0

    def add(self, outputs: np.ndarray, labels: np.ndarray | None = None, feeds: Any = None) -> None:
        """Count the predictions in `outputs`; `labels` have the shape that `fit_labels` returns.

        The entropy is that of the positions that a loss reads (`counted_positions`); `feeds` are those of the step.  A
        position of a dense head whose label is no class (255 by custom) counts neither as right nor as wrong.
        """
        each, real = entropies(outputs, self.head), counted_positions(outputs, self.head, feeds)
        self.entropy += float(each[real].sum())
        self.answers += int(real.sum())
        if labels is None:
            return
        chosen = decisions(outputs, self.head)
        counted = real if self.head.mask else np.ones(chosen.shape, bool)
        if self.head.kind == "dense":
            classes = 2 if is_binary(outputs.shape, self.head) else outputs.shape[self.head.axis or 0]
            counted = counted & (labels >= 0) & (labels < classes)
        self.wrong += int(np.sum((chosen != labels) & counted))
        self.labelled += int(counted.sum())

    @property
    def mean_entropy(self) -> float:
        """Mean entropy per prediction, in nats."""
        return self.entropy / max(1, self.answers)

    @property
    def error(self) -> float | None:
        """Fraction of wrong predictions; None without labels."""
        return self.wrong / self.labelled if self.labelled else None


def fit_labels(labels: np.ndarray, shape: tuple[int, ...], head: HeadSpec = CLASSES) -> np.ndarray:
    """Return the labels in the shape of the predictions of outputs [n, ...] of this `shape`, one label for each.

    The labels may have axes of size 1 more or fewer.  Raises UsageError where there are more labels, or fewer.
    """
    many = head.axis is None or (is_binary(shape, head) and shape[head.axis] > 1)
    expected = shape if many else tuple(size for axis, size in enumerate(shape) if axis != head.axis)
    if _without_ones(labels.shape) != _without_ones(expected):
        raise UsageError(
            f"labels of {len(labels)} samples have shape {list(labels.shape)}, the predictions {list(expected)}",
            where="array `labels`",
            hint="give one label for each prediction, or remove the array `labels`",
        )
    return labels.reshape(expected)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *(size for size in shape[1:] if size != 1)) if shape else ()


def _sided(s: np.ndarray) -> np.ndarray:
    """Return [..., 2], the probabilities s and 1 - s, clipped so that their logarithms are finite."""
    s = s.clip(1e-12, 1 - 1e-12)
    return np.stack([s, 1 - s], -1)


def _entropy(scores: np.ndarray, axis: int) -> np.ndarray:
    """Return -sum p log p with p = softmax of the scores along the axis; a score of -infinity is a probability of 0.

    The entropy of scores with NaN or +infinity is NaN.
    """
    with np.errstate(invalid="ignore"):
        shifted = scores - scores.max(axis=axis, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(axis=axis, keepdims=True)
    terms = np.where(powers > 0, powers, 0.0) * np.where(powers > 0, shifted, 0.0)
    entropy: np.ndarray = (np.log(total) - terms.sum(axis=axis, keepdims=True) / total).squeeze(axis)
    return entropy
