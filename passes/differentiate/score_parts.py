"""Find the numbers of an output that are scores, where it holds box coordinates too, as detectors have it.

Detectors of the YOLO family join coordinates, sometimes the score of an object, and the scores of classes along one
axis: [N, 4 + classes, boxes] or [N, boxes, 5 + classes]. A Sigmoid bounds the scores and not the coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, chain

import onnx_ir as ir

from ttac.passes.differentiate.followed_axes import MOVES, moved
from ttac.passes.graph.match import array_of
from ttac.passes.graph.shapes import dims

DEPTH = 64
"""Largest number of nodes between an output and its Sigmoids that are searched."""


@dataclass(frozen=True)
class ScoreParts:
    """Layout of an output that joins box coordinates and scores.

    Attributes:
        axis: the axis along which they are joined.
        first: position of the first score, behind the coordinates.
        count: number of scores at each position.
        objectness: whether the first score says whether there is an object at all.
    """

    axis: int
    first: int
    count: int
    objectness: bool


@dataclass(frozen=True)
class Segment:
    """Consecutive numbers along an axis; `scores` if a Sigmoid made them, `whole` if they are all its numbers."""

    size: int
    scores: bool
    whole: bool = False


def score_parts(output: ir.Value) -> ScoreParts | None:
    """Return the layout of an output [N, ., .] that joins scores and other numbers; None for any other output."""
    shape = dims(output)
    if len(shape) != 3:
        return None
    for axis in (1, 2):
        segments = _segments(output, axis, DEPTH)
        kinds = [segment.scores for segment in segments]
        if len(set(kinds)) < 2:
            continue
        begin = kinds.index(True)
        scores = segments[begin : begin + [*kinds[begin:], False].index(False)]
        count = sum(segment.size for segment in scores)
        # One Sigmoid over all numbers, of which the coordinates are computed on, has the score of an object first.
        objectness = scores[0].size == 1 if len(scores) > 1 else not scores[0].whole
        first = sum(segment.size for segment in segments[:begin])
        return ScoreParts(axis, first, count, objectness and count > 1)
    return None


def _segments(value: ir.Value | None, axis: int, depth: int) -> list[Segment]:
    """Return the segments of `value` along `axis`."""
    assert value is not None
    node, shape = value.producer(), dims(value)
    size = shape[axis]
    other = [Segment(size, False)] if isinstance(size, int) else []
    if node is None or not depth:
        return other
    if node.op_type == "Sigmoid":
        return [Segment(size, True, True)] if isinstance(size, int) else []
    if node.op_type in MOVES and node.inputs[0] is not None:
        before = [i for i in range(len(dims(node.inputs[0]))) if moved(node, i) == axis]
        return _segments(node.inputs[0], before[0], depth - 1) if before else other
    if node.op_type == "Concat":
        parts = [_segments(each, axis, depth - 1) for each in node.inputs]
        if node.attributes.get_int("axis", 0) % len(shape) == axis:
            return list(chain(*parts))
        return parts[0] if all(part == parts[0] for part in parts) else other
    bounds = _slice_bounds(node, value, axis)
    if bounds is not None:
        return _cut(_segments(node.inputs[0], axis, depth - 1), *bounds)
    return other


def _slice_bounds(node: ir.Node, value: ir.Value, axis: int) -> tuple[int, int] | None:
    """Return the begin and end along `axis` of a Slice or of a part of a Split; None for any other node."""
    x = node.inputs[0]
    if node.op_type == "Split" and x is not None:
        if node.attributes.get_int("axis", 0) % len(dims(x)) != axis:
            return 0, int(dims(x)[axis])
        position = list(node.outputs).index(value)
        ends = list(accumulate(int(dims(part)[axis]) for part in node.outputs))
        return ends[position] - int(dims(value)[axis]), ends[position]
    if node.op_type != "Slice" or x is None or not isinstance(dims(x)[axis], int):
        return None
    arrays = [array_of(each) for each in node.inputs[1:]]
    if len(arrays) < 3 or any(array is None for array in arrays):
        return None
    size = int(dims(x)[axis])
    starts, _, axes = (list(array) for array in arrays[:3] if array is not None)
    if axis not in [int(each) % len(dims(x)) for each in axes]:
        return 0, size
    start = int(starts[[int(each) % len(dims(x)) for each in axes].index(axis)])
    start = max(0, start + size if start < 0 else start)
    return start, start + int(dims(value)[axis])


def _cut(segments: list[Segment], begin: int, end: int) -> list[Segment]:
    """Return the numbers from `begin` to `end` of the segments."""
    parts, position = [], 0
    for segment in segments:
        low, high = max(begin, position), min(end, position + segment.size)
        if high > low:
            parts.append(Segment(high - low, segment.scores, segment.whole and high - low == segment.size))
        position += segment.size
    return parts
