"""What outputs say, read as a bundle's `head` tells: entropies, predictions and errors.  Standard library and numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ttac.errors import UsageError
from ttac.runtime.manifest import HeadSpec

CLASSES = HeadSpec("classes", 1, "logits")
"""How an output is read where nothing else is said."""


def entropies(outputs: np.ndarray, head: HeadSpec = CLASSES) -> np.ndarray:
    """The entropy of each prediction in nats, float64: outputs [n, ...] without the axis of classes."""
    found = outputs.astype(np.float64)
    if is_binary(outputs.shape, head):
        sides = np.stack([found, np.zeros_like(found)], -1) if head.values == "logits" else np.log(_sided(found))
        return _entropy(sides, -1)
    if head.values == "probabilities":
        with np.errstate(divide="ignore"):
            found = np.log(found)
    assert head.axis is not None
    return _entropy(found, head.axis)


def is_binary(shape: tuple[int, ...], head: HeadSpec) -> bool:
    """Whether each number of an output of this shape is an answer of its own."""
    return head.kind == "binary" or head.axis is None or shape[head.axis] == 1


def decisions(outputs: np.ndarray, head: HeadSpec = CLASSES) -> np.ndarray:
    """The class at each position, or 0 and 1 for each binary answer; without the head's axis if that has one entry."""
    if not is_binary(outputs.shape, head):
        return np.asarray(outputs.argmax(axis=head.axis))
    bound = {"logits": 0.0, "probabilities": 0.5, "log_probabilities": np.log(0.5)}[head.values]
    chosen: np.ndarray = (outputs > bound).astype(np.int64)
    return chosen if head.axis is None or outputs.shape[head.axis] > 1 else chosen.squeeze(head.axis)


@dataclass
class Tally:
    """Predictions counted batch by batch.

    Attributes:
        entropy: sum over `answers` predictions, in nats.
        wrong: predictions that differ from their label, of `labelled` ones.
    """

    head: HeadSpec = CLASSES
    entropy: float = 0.0
    answers: int = 0
    wrong: int = 0
    labelled: int = 0

    def add(self, outputs: np.ndarray, labels: np.ndarray | None = None) -> None:
        """Count the predictions in `outputs`; labels as `fit_labels` gives them.

        A dense head's labels that are no class (255 by custom) leave their position out.
        """
        found = entropies(outputs, self.head)
        self.entropy += float(found.sum())
        self.answers += found.size
        if labels is None:
            return
        chosen = decisions(outputs, self.head)
        counted = np.ones(chosen.shape, bool)
        if self.head.kind == "dense":
            classes = 2 if is_binary(outputs.shape, self.head) else outputs.shape[self.head.axis or 0]
            counted = (labels >= 0) & (labels < classes)
        self.wrong += int(np.sum((chosen != labels) & counted))
        self.labelled += int(counted.sum())

    @property
    def mean_entropy(self) -> float:
        """Mean entropy of a prediction, in nats."""
        return self.entropy / max(1, self.answers)

    @property
    def error(self) -> float | None:
        """Share of wrong predictions; None without labels."""
        return self.wrong / self.labelled if self.labelled else None


def fit_labels(labels: np.ndarray, shape: tuple[int, ...], head: HeadSpec = CLASSES) -> np.ndarray:
    """Labels for predictions of outputs [n, ...] of this `shape`: one for each; an axis of size 1 may be there or not.

    Raises UsageError where there are more, or fewer.
    """
    many = head.axis is None or (is_binary(shape, head) and shape[head.axis] > 1)
    wanted = shape if many else tuple(size for axis, size in enumerate(shape) if axis != head.axis)
    if _without_ones(labels.shape) != _without_ones(wanted):
        raise UsageError(
            f"labels of {len(labels)} samples have shape {list(labels.shape)}, the predictions {list(wanted)}",
            where="array `labels`",
            hint="give one label for each prediction, or remove the array `labels`",
        )
    return labels.reshape(wanted)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *(size for size in shape[1:] if size != 1)) if shape else ()


def _sided(s: np.ndarray) -> np.ndarray:
    """s and 1 - s of probabilities, none so small that its logarithm is infinite; [..., 2]."""
    s = s.clip(1e-12, 1 - 1e-12)
    return np.stack([s, 1 - s], -1)


def _entropy(scores: np.ndarray, axis: int) -> np.ndarray:
    """-sum p log p with p = softmax of the scores along the axis; scores of -infinity are probabilities of 0."""
    shifted = scores - scores.max(axis=axis, keepdims=True)
    powers = np.exp(shifted)
    total = powers.sum(axis=axis, keepdims=True)
    terms = np.where(powers > 0, powers, 0.0) * np.where(powers > 0, shifted, 0.0)
    found: np.ndarray = (np.log(total) - terms.sum(axis=axis, keepdims=True) / total).squeeze(axis)
    return found
