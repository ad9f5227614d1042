"""Decide the head of a model: one class of each sample, yes-or-no answers, or a class at every position.

Three facts decide the head: the shape of the output, its last Softmax or Sigmoid, and the layer of its features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx_ir as ir

from ttac.errors import UnsupportedError, UsageError
from ttac.passes.differentiate.endings import Ending, ending_of
from ttac.passes.differentiate.followed_axes import feature_axis, moved
from ttac.passes.differentiate.head_refusals import (
    named,
    refuse_choices,
    refuse_missing_axis,
    refuse_mixture,
    refuse_whole_numbers,
)
from ttac.passes.differentiate.score_parts import ScoreParts, score_parts
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.places import node_place
from ttac.passes.graph.shapes import dims
from ttac.samples.box_outputs import BoxOutput

Kind = Literal["classes", "binary", "dense", "detection", "ctc"]
Values = Literal["logits", "probabilities", "log_probabilities"]

VALUES: dict[str, Values] = {
    "Softmax": "probabilities",
    "LogSoftmax": "log_probabilities",
    "Sigmoid": "probabilities",
    "": "logits",
}
FORMS: dict[Kind, str] = {
    "classes": "[N, classes], two or more, without a Sigmoid",
    "binary": "independent answers, without a Softmax",
    "dense": "[N, classes, ...] with three axes or more, without a Sigmoid over several classes",
    "detection": "[N, ., .], the scores of boxes along one axis, or joined with the coordinates of the boxes",
    "ctc": "[N, frames, classes], without a Sigmoid",
}
ALIASES = {"multilabel": "binary", "tokens": "dense"}
"""Words of the option for a head that has another name: several answers, and positions without padding."""


PADDING = "padding"
"""Part of the name of a mask that is true where a position is padding; other masks are true where it is none."""
CERTAIN = (1e-7, 1 - 1e-6)
"""Probabilities between which the score of a box is computed from its probability; outside it has no gradient."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The reading of an output.

    Attributes:
        kind: "classes" (of each sample), "binary" (independent answers), "dense" (classes of each position),
            "detection" (scores of boxes) or "ctc" (characters of frames).
        shape: shape of the scores, and of the output but for `first`.
        axis: axis of the classes or answers; None for an output [N], or [N, boxes], with one answer at each position.
        values: kind of the numbers in the output.
        first: position of the first score along the axis, behind the coordinates of a box.
        objectness: whether the first score says whether there is an object at all.
        ignored: class of the background of a detector, or of the blank of a reader; positions of this class count for
            nothing.  None if there is no such class.
        mask: name of an input [N, ...] that says which positions are padding, which counts for nothing; or empty.
        boxes: name of the output with the boxes, where another output than that of the scores holds them; or empty.
    """

    kind: Kind
    shape: tuple[int | str, ...]
    axis: int | None
    values: Values
    first: int = 0
    objectness: bool = False
    ignored: int | None = None
    mask: str = ""
    boxes: str = ""

    @property
    def outputs(self) -> int:
        """Numbers at each position."""
        return 1 if self.axis is None else int(self.shape[self.axis])

    @property
    def binary(self) -> bool:
        """Whether each number is an independent answer of a sigmoid; a dense head with one number is binary too."""
        return self.kind == "binary" or self.outputs == 1 or (self.kind == "detection" and self.ignored is None)

    @property
    def classes(self) -> int:
        """Number of classes of a prediction."""
        return 2 if self.binary else self.outputs

    @property
    def positions(self) -> tuple[int | str, ...]:
        """Shape of the predictions, and so of the losses: [N], or for example [N, H, W] with a dense head."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.axis)

    @property
    def counts(self) -> bool:
        """Truth value of the mask at a position that counts."""
        return PADDING not in self.mask.lower()

    @property
    def described(self) -> dict[str, Any]:
        """The entry of the head in a manifest."""
        entry = {key: getattr(self, key) for key in ("kind", "axis", "values")}
        if self.kind in ("detection", "ctc"):
            entry |= {"first": self.first, "count": self.outputs, "ignored": self.ignored}
        entry |= {"mask": {"input": self.mask, "counts": self.counts}} if self.mask else {}
        entry |= {"boxes": self.boxes} if self.boxes else {}
        return {**entry, "objectness": True} if self.objectness else entry

    def __str__(self) -> str:
        where = "" if self.axis is None else f" along axis {self.axis}"
        answers = "yes or no" if self.outputs == 1 else f"{self.outputs} times yes or no"
        predictions = answers if self.binary else f"{self.outputs} classes"
        behind = f", behind {self.first} coordinates of a box" if self.first else ""
        without = f", without class {self.ignored}" if self.ignored is not None else ""
        without += f", without the padding of `{self.mask}`" if self.mask else ""
        without += f", boxes in `{self.boxes}`" if self.boxes else ""
        return f"{self.kind}: {predictions}{where}{behind}{without}, {self.values.replace('_', ' ')}"


def decide_head(
    output: ir.Value,
    option: str = "auto",
    axis: int | None = None,
    *,
    reads_text: bool = False,
    background: str = "auto",
    boxes: BoxOutput | None = None,
) -> Head:
    """Return the head of the model's `output`, which is in normal form.

    Args:
        option: "auto" or one of the kinds.
        axis: axis of the classes, where the user states it.
        reads_text: whether the model looks like a reader of text (`reads_text`), whose frames are a CTC head.
        background: "first", "last" or "none" for the class that counts for nothing; "auto": the first of a Softmax.
        boxes: another output of the model that may hold the boxes of these scores.

    Raises UnsupportedError if the output is no prediction, has two possible readings, or contradicts `option`, and
    UsageError for an axis that the output does not have.
    """
    ending, shape = ending_of(output), tuple(dims(output))
    option = ALIASES.get(option, option)
    refuse_missing_axis(output, axis)
    refuse_whole_numbers(output)
    parts = score_parts(output)
    if parts is not None and option in ("auto", "detection") and axis in (None, parts.axis):
        return _of_parts(parts, shape)
    refuse_mixture(output, option, parts)
    refuse_choices(output, ending)
    _refuse_other_axis(output, ending, axis)
    axis = _softmax_axis(output, ending) if axis is None and ending.axis is not None else axis
    is_apart, axis = boxes.reading(shape, axis) if boxes and option in ("auto", "detection") else (False, axis)
    axis = axis if is_apart or axis is not None else _class_axis(output, ending, option, reads_text)
    apart = boxes.name if boxes and is_apart else ""
    kind = "detection" if apart else _kind(shape, axis, ending, reads_text) if option == "auto" else _named_kind(option)
    head = Head(kind=kind, shape=shape, axis=axis, values=VALUES[ending.kind])
    head = replace(head, ignored=_ignored(head, ending, background), boxes=apart)
    _refuse_contradiction(output, head, ending, option)
    return head


def _of_parts(parts: ScoreParts, shape: Sequence[int | str]) -> Head:
    """Return the head of an output of this `shape` that joins boxes and scores."""
    return Head(
        kind="detection",
        shape=tuple(parts.count if i == parts.axis else size for i, size in enumerate(shape)),
        axis=parts.axis,
        values="probabilities",
        first=parts.first,
        objectness=parts.objectness,
    )


def _ignored(head: Head, ending: Ending, background: str) -> int | None:
    """Return the class of the background or the blank; None if there is none.

    Raises UsageError for a reader without a blank, or a head that has no background.
    """
    softmax = ending.kind in ("Softmax", "LogSoftmax")
    if background != "auto" and (
        head.kind not in ("detection", "ctc") or (head.kind == "ctc" and background == "none")
    ):
        problem = f"a head `{head.kind}` has no such background"
        raise UsageError(problem, where=f"`--background {background}`", hint="leave the option out")
    if background == "none" or (
        background == "auto" and head.kind != "ctc" and not (head.kind == "detection" and softmax)
    ):
        return None
    return head.outputs - 1 if background == "last" else 0


def scores_of(op: Builder, output: ir.Value, head: Head | None = None) -> ir.Value:
    """Return the scores of `output`: the values before its Softmax or Sigmoid, if any, without coordinates of boxes.

    Where the scores of a `head` are joined with coordinates, they are computed from the probabilities.
    """
    if head is not None and list(head.shape) != dims(output):
        assert head.axis is not None
        begin, end = head.first, head.first + head.outputs
        return log_odds(op, op.Slice(output, [begin], [end], [head.axis]))
    ending = ending_of(output)
    if ending.scores is None:
        return output
    scores = ending.scores
    for node in ending.moves:
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        scores = op.node(node.op_type, [scores, *node.inputs[1:]], attributes)
        scores.shape = node.outputs[0].shape
    return scores


def log_odds(op: Builder, probability: ir.Value) -> ir.Value:
    """Return ln(p / (1 - p)), the scores whose Sigmoid is the `probability`."""
    chosen = op.Clip(probability, *CERTAIN)
    made: ir.Value = op.Sub(op.Log(chosen), op.Log(op.Sub(1.0, chosen)))
    return made


def _class_axis(output: ir.Value, ending: Ending, option: str, reads_text: bool) -> int | None:
    """Return the axis of the classes: the axis of the Softmax, of the last linear layer's features, or the second axis.

    Returns None if every position has one number.  Three axes without a linear layer are [N, T, C] in a reader of text;
    raises UnsupportedError for another model, because [N, C, L] and [N, T, C] look alike.
    """
    shape = dims(output)
    if ending.axis is not None:
        return _softmax_axis(output, ending)
    if len(shape) < 3:
        return None if len(shape) == 1 or feature_axis(output) == (True, None) else 1
    if option in ("ctc", "detection"):
        return feature_axis(output)[1] or len(shape) - 1
    is_known, axis = feature_axis(output)
    if is_known or option == "binary":
        return axis
    if len(shape) == 3 and option == "auto" and reads_text:
        return len(shape) - 1
    if len(shape) == 3 and option == "auto":
        raise UnsupportedError(
            "the output has three axes, and the axis of the classes is unclear",
            where=named(output),
            hint="`--head dense --axis 1` for [N, classes, positions], `--head dense --axis 2` for [N, positions, "
            "classes]; `--head ctc` for a reader of text, `--head detection` for the scores of boxes",
        )
    return 1


def _softmax_axis(output: ir.Value, ending: Ending) -> int:
    """Return the axis of the output that corresponds to the axis of the Softmax."""
    axis = ending.axis
    for node in ending.moves:
        axis = moved(node, axis)
    if not axis:
        raise UnsupportedError(
            f"the model ends in a {ending.kind} over an axis that does not remain an axis of classes in the output",
            where=f"{named(output)}, behind {node_place(ending.last) if ending.last else 'no node'}",
            hint=f"export the model without its last {ending.kind}, or use a method without a loss",
        )
    return axis


def _kind(shape: Sequence[int | str], axis: int | None, ending: Ending, reads_text: bool) -> Kind:
    if reads_text and "ctc" in _fitting(len(shape), int(shape[axis or 0]), ending):
        return "ctc"
    if len(shape) != 3 and axis is not None and ending.kind == "Sigmoid" and shape[axis] != 1:
        return "binary"
    if len(shape) > (1 if axis is None else 2):
        return "dense"
    return "binary" if axis is None or shape[axis] == 1 else "classes"


def _named_kind(option: str) -> Kind:
    return next(kind for kind in FORMS if kind == option)


def _refuse_other_axis(output: ir.Value, ending: Ending, axis: int | None) -> None:
    """Raise UnsupportedError for a stated axis that is not the axis of the Softmax."""
    if axis is not None and ending.axis is not None and axis != _softmax_axis(output, ending):
        raise UnsupportedError(
            f"the model ends in a {ending.kind} over axis {_softmax_axis(output, ending)}",
            where=f"{named(output)}, `--axis {axis}`",
            hint="leave the option out",
        )


def _refuse_contradiction(output: ir.Value, head: Head, ending: Ending, option: str) -> None:
    """Raise UnsupportedError if the output cannot have this `head`."""
    rank = len(head.shape)
    fitting = _fitting(rank + (head.axis is None and rank > 1), head.outputs, ending)
    if head.kind in fitting:
        return
    if not fitting:
        raise UnsupportedError(
            f"the model ends in a {ending.kind} over a single class, which is always 1",
            where=named(output),
            hint=f"export the model without its last {ending.kind}, or use a method without a loss",
        )
    if option == "auto":
        raise UnsupportedError(
            "the model ends in a Sigmoid: the outputs are no distribution over classes",
            where=named(output),
            hint="`--head detection` for the scores of boxes; `--head multilabel` for independent answers; if the "
            "classes exclude each other, export the model without its last Sigmoid; or use a method without a loss",
        )
    ends = f" and ends in a {ending.kind}" if ending.kind else ""
    raise UnsupportedError(
        f"the output has {rank} axes{ends}, but a head `{option}` is {FORMS[head.kind]}",
        where=f"{named(output)}, `--head {option}`",
        hint=f"`--head {fitting[0]}`, or leave the option out",
    )


def _fitting(rank: int, outputs: int, ending: Ending) -> list[Kind]:
    """Return the kinds of head that are possible for an output; the likeliest comes first."""
    softmax, sigmoid = ending.kind in ("Softmax", "LogSoftmax"), ending.kind == "Sigmoid"
    kinds: list[Kind] = []
    if rank == 2 and outputs > 1 and not sigmoid:
        kinds.append("classes")
    if rank > 2 and not (sigmoid and outputs > 1) and not (softmax and outputs == 1):
        kinds.append("dense")
    if not softmax:
        kinds.append("binary")
    if rank == 3:
        kinds.append("detection")
        if outputs > 1 and not sigmoid:
            kinds.append("ctc")
    return kinds
