"""Outputs that hold the boxes of a detector apart from their scores.

Imports the standard library and numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

COORDINATES = 4
"""Numbers of a box: centre, width and height; in front of its scores where one output holds both."""


@dataclass(frozen=True, kw_only=True)
class BoxOutput:
    """An output [N, boxes, 4] or [N, 4, boxes] of a model.

    Attributes:
        name: name of the output.
        boxes: number of boxes, or its symbol.
        samples: axis with the samples.
        numbers: axis of the four numbers, with the samples first: 1 or 2.
    """

    name: str
    boxes: int | str
    samples: int
    numbers: int

    def classes_axis(self, shape: Sequence[int | str]) -> int | None:
        """Return the axis of the classes in scores of this `shape`, beside the axis of the boxes; None without it."""
        return None if len(shape) != 3 else 2 if shape[1] == self.boxes else 1 if shape[2] == self.boxes else None

    def reading(self, shape: Sequence[int | str], axis: int | None = None) -> tuple[bool, int | None]:
        """Return whether an output of this `shape` has the scores of these boxes, and the axis of its classes.

        A stated `axis` of the classes must be that beside the axis of the boxes.  Scores [N, boxes] have no such axis.
        """
        beside = self.classes_axis(shape)
        if axis is None and beside is None:
            return len(shape) == 2 and shape[1] == self.boxes, None
        return axis in (None, beside), axis or beside

    def read(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the boxes (centre x, centre y, width, height), [n, boxes, 4], from the outputs of a step.

        Boxes whose third and fourth numbers are never below the first and second are corners: only a box in the first
        corner of its image is wider than the place of its centre.
        """
        boxes = np.moveaxis(np.moveaxis(outputs[self.name], self.samples, 0), self.numbers, 2)
        first, last = boxes[..., :2], boxes[..., 2:]
        if (last < first).any():
            return boxes
        return np.concatenate([(first + last) / 2, last - first], 2)


def box_outputs(name: str, shape: Sequence[int | str], samples: int = 0) -> list[BoxOutput]:
    """Return the readings of an output of this `shape` as boxes, the likelier first; none without four numbers."""
    sizes = [size for axis, size in enumerate(shape) if axis != samples]
    if len(sizes) != 2:
        return []
    return [
        BoxOutput(name=name, boxes=sizes[2 - numbers], samples=samples, numbers=numbers)
        for numbers in (2, 1)
        if sizes[numbers - 1] == COORDINATES
    ]
