"""The entry `head` of a manifest: the reading of an output, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ttac.runtime.json_values import a_count, an_object, refuse
from ttac.runtime.records import BATCH_AXIS, HEADS, VALUES, HeadSpec, TensorSpec

SCORES = ("first", "count", "ignored", "objectness", "mask", "boxes")
"""Keys of a head that joins scores and other numbers, leaves a class or padding out, or has its boxes apart."""


def parse_head(value: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> HeadSpec | None:
    """Return the record of a manifest's `head`; None for null.

    Raises VerificationError for an entry that does not fit `docs/bundle.md`.
    """
    if value is None:
        return None
    entry = an_object(value, "head", only=("output", "kind", "axis", "values"), also=SCORES)
    for key, words in (("kind", HEADS), ("values", VALUES)):
        if entry[key] not in words:
            refuse(f"head.{key}", f"is {entry[key]!r}")
    output = next((spec for spec in outputs if spec.name == entry["output"]), None)
    if output is None:
        refuse("head.output", f"is {entry['output']!r}, which `outputs` lacks")
    if output.batch_axis is None:
        refuse("head.output", f"is `{output.name}`, whose shape has no `{BATCH_AXIS}`")
    axis = entry["axis"]
    if axis is not None and a_count(axis, "head.axis", low=0) >= len(output.shape):
        refuse("head.axis", f"is {axis}, and the output has {len(output.shape)} axes")
    if axis == output.batch_axis:
        refuse("head.axis", f"is {axis}, the axis of the samples")
    if axis is None and entry["kind"] == "classes":
        refuse("head.axis", "is null, and a head of classes has an axis of them")
    first, count, ignored = _score_parts(entry, output.shape[axis] if axis is not None else 1)
    mask, counts = _mask(entry.get("mask"), inputs)
    if entry.get("boxes", output.name) not in [spec.name for spec in outputs]:
        refuse("head.boxes", f"is {entry['boxes']!r}, which `outputs` lacks")
    return HeadSpec(
        kind=entry["kind"],
        axis=axis,
        values=entry["values"],
        output=output.name,
        first=first,
        count=count,
        objectness=entry.get("objectness", False),
        ignored=ignored,
        mask=mask,
        counts=counts,
        boxes=entry.get("boxes", ""),
    )


def _mask(value: Any, inputs: Sequence[TensorSpec]) -> tuple[str, bool]:
    """The input that masks positions, and its truth value where a position counts; empty for None."""
    if value is None:
        return "", True
    entry = an_object(value, "head.mask", only=("input", "counts"))
    if not isinstance(entry["counts"], bool):
        refuse("head.mask.counts", f"is {entry['counts']!r}")
    if not any(spec.name == entry["input"] and spec.batch_axis == 0 for spec in inputs):
        refuse("head.mask.input", f"is {entry['input']!r}, which is no input with the samples first")
    return entry["input"], entry["counts"]


def _score_parts(entry: Mapping[str, Any], size: int | str) -> tuple[int, int | None, int | None]:
    """The first score, the number of scores and the ignored class of a head whose axis has `size` numbers."""
    first, count, ignored = (entry.get(key) for key in ("first", "count", "ignored"))
    for key in ("first", "count", "ignored"):
        if entry.get(key) is not None:
            a_count(entry[key], f"head.{key}", low=0)
    if isinstance(size, int) and (first or 0) + (count or 0) > size:
        refuse("head.count", f"is {count} from {first or 0}, and the axis has {size} numbers")
    if not isinstance(entry.get("objectness", False), bool):
        refuse("head.objectness", f"is {entry['objectness']!r}")
    return first or 0, count, ignored
