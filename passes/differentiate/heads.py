"""Decide the head of a model: one class of each sample, yes-or-no answers, or a class at every position.

Three facts decide the head: the shape of the output, its last Softmax or Sigmoid, and the layer of its features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims

Kind = Literal["classes", "binary", "dense"]
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
}
# Operators that only move values: the scores before a Softmax can be moved in the same way.
MOVES = frozenset("Flatten Reshape Squeeze Transpose Unsqueeze".split())
# Operators that pick, mix or round predictions: their outputs are no longer those of a Softmax or Sigmoid.
MIXES = frozenset("Cast Clip Concat DepthToSpace Gather GatherND Pad Resize Slice Split".split())
# Operators that output the numbers of classes.
CHOICES = frozenset("ArgMax ArgMin Hardmax NonMaxSuppression TopK".split())
# Operators that keep the place of every axis of their first input.
STAYS = frozenset(
    "Add AveragePool BatchNormalization Cast Clip DepthToSpace Div Elu Gelu HardSigmoid HardSwish LeakyRelu LogSoftmax "
    "InstanceNormalization LayerNormalization MaxPool Mul PRelu Pad Relu Resize Sigmoid Slice Softmax Softplus Sub "
    "Tanh".split()
)


@dataclass(frozen=True)
class Head:
    """The reading of an output.

    Attributes:
        kind: "classes" (of each sample), "binary" (independent answers) or "dense" (classes of each position).
        shape: shape of the output, and of the scores.
        axis: axis of the classes or answers; None for an output [N] with one answer for each sample.
        values: kind of the numbers in the output.
    """

    kind: Kind
    shape: tuple[int | str, ...]
    axis: int | None
    values: Values

    @property
    def outputs(self) -> int:
        """Numbers at each position."""
        return 1 if self.axis is None else int(self.shape[self.axis])

    @property
    def binary(self) -> bool:
        """Whether each number is an independent answer of a sigmoid; a dense head with one number is binary too."""
        return self.kind == "binary" or self.outputs == 1

    @property
    def classes(self) -> int:
        """Number of classes of a prediction."""
        return 2 if self.binary else self.outputs

    @property
    def positions(self) -> tuple[int | str, ...]:
        """Shape of the predictions, and so of the losses: [N], or for example [N, H, W] with a dense head."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.axis)

    @property
    def described(self) -> dict[str, Any]:
        """The entry of the head in a manifest."""
        return {key: value for key, value in asdict(self).items() if key != "shape"}

    def __str__(self) -> str:
        where = "" if self.axis is None else f" along axis {self.axis}"
        answers = "yes or no" if self.outputs == 1 else f"{self.outputs} times yes or no"
        predictions = answers if self.binary else f"{self.outputs} classes"
        return f"{self.kind}: {predictions}{where}, {self.values.replace('_', ' ')}"


def decide_head(output: ir.Value, option: str = "auto") -> Head:
    """Return the head of the model's `output`, which is in normal form; `option` is "auto" or one of the kinds.

    Raises UnsupportedError if the output is no prediction, has two possible readings, or contradicts `option`.
    """
    ending = _ending(output)
    _refuse_choices(output, ending)
    shape = tuple(dims(output))
    axis = _class_axis(output, ending, option)
    kind = _kind(shape, axis, ending) if option == "auto" else next(kind for kind in FORMS if kind == option)
    head = Head(kind, shape, axis, VALUES[ending.kind])
    _refuse_contradiction(output, head, ending, option)
    return head


def scores_of(op: Builder, output: ir.Value) -> ir.Value:
    """Return the scores: the values before the Softmax or Sigmoid of `output`, if any, in the shape of `output`."""
    ending = _ending(output)
    if ending.scores is None:
        return output
    scores = ending.scores
    for node in ending.moves:
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        scores = op.node(node.op_type, [scores, *node.inputs[1:]], attributes)
        scores.shape = node.outputs[0].shape
    return scores


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The last operators of a model.

    Attributes:
        kind: "Softmax", "LogSoftmax", "Sigmoid", or "" for none of them.
        axis: the axis of a Softmax, in the axes of `scores`.
        scores: the input of the Softmax or Sigmoid.
        moves: the nodes of `MOVES` between `last` and the output, in order.
        last: the last node that is not in `MOVES`; None if only such nodes follow the model's input.
    """

    kind: str = ""
    axis: int | None = None
    scores: ir.Value | None = None
    moves: tuple[ir.Node, ...] = ()
    last: ir.Node | None = None


def _ending(output: ir.Value) -> Ending:
    moves: list[ir.Node] = []
    node = output.producer()
    while node is not None and node.op_type in MOVES and node.inputs[0] is not None:
        moves.insert(0, node)
        node = node.inputs[0].producer()
    if node is None:
        return Ending(moves=tuple(moves))
    if node.op_type in ("Softmax", "LogSoftmax"):
        x = node.inputs[0]
        axis = node.attributes.get_int("axis", -1) % len(dims(x))
        return Ending(kind=node.op_type, axis=axis, scores=x, moves=tuple(moves), last=node)
    if node.op_type == "Sigmoid":
        return Ending(kind="Sigmoid", scores=node.inputs[0], moves=tuple(moves), last=node)
    if (spelled := _spelled_softmax(node)) is not None:
        scores, axis = spelled
        return Ending(kind="Softmax", axis=axis, scores=scores, moves=tuple(moves), last=node)
    return Ending(moves=tuple(moves), last=node)


def _spelled_softmax(node: ir.Node) -> tuple[ir.Value, int] | None:
    """Scores and axis of e^x / sum e^x, the Softmax of older Keras on maps."""
    if node.op_type != "Div" or node.inputs[0] is None or node.inputs[1] is None:
        return None
    powers, total = node.inputs[0].producer(), node.inputs[1].producer()
    if powers is None or total is None or (powers.op_type, total.op_type) != ("Exp", "ReduceSum"):
        return None
    axes = total.inputs[1].const_value if len(total.inputs) > 1 and total.inputs[1] is not None else None
    if total.inputs[0] is not powers.outputs[0] or axes is None or axes.size != 1 or powers.inputs[0] is None:
        return None
    if not total.attributes.get_int("keepdims", 1):
        return None
    return powers.inputs[0], int(axes.numpy().item()) % len(dims(powers.inputs[0]))


def _class_axis(output: ir.Value, ending: Ending, option: str) -> int | None:
    """Return the axis of the classes: the axis of the Softmax, of the last linear layer's features, or the second axis.

    Returns None if every position has one number.  Raises UnsupportedError for three axes without a linear layer,
    because [N, C, L] and [N, T, C] look alike.
    """
    shape = dims(output)
    if ending.axis is not None:
        return _softmax_axis(output, ending)
    if len(shape) < 3:
        return 1 if len(shape) == 2 else None
    is_known, axis = _feature_axis(output)
    if is_known or option == "binary":
        return axis
    if len(shape) == 3 and option == "auto":
        raise UnsupportedError(
            "the output has three axes, and the axis of the classes is unclear",
            where=_named(output),
            hint="`--head dense` takes the second axis, [N, classes, positions]; else export a Transpose to this form",
        )
    return 1


def _softmax_axis(output: ir.Value, ending: Ending) -> int:
    """Return the axis of the output that corresponds to the axis of the Softmax."""
    axis = ending.axis
    for node in ending.moves:
        axis = _moved(node, axis)
    if not axis:
        raise UnsupportedError(
            f"the model ends in a {ending.kind} over an axis that does not remain an axis of classes in the output",
            where=f"{_named(output)}, behind node `{ending.last.name if ending.last else ''}`",
            hint=f"export the model without its last {ending.kind}, or use a method without a loss",
        )
    return axis


def _feature_axis(value: ir.Value | None) -> tuple[bool, int | None]:
    """Return whether the features of the last linear layer can be followed to `value`, and their axis in `value`.

    The axis is None if it is unclear, or if the operators squeeze a single feature away.
    """
    followers: list[ir.Node] = []
    node = None if value is None else value.producer()
    while node is not None and node.op_type in MOVES | STAYS:
        followers.append(node)
        node = max((v.producer() for v in node.inputs[:2] if v is not None), key=lambda maker: maker is not None)
    axis = None if node is None else _own_axis(node)
    for later in reversed([other for other in followers if other.op_type in MOVES]):
        if axis is None:
            break
        single = dims(later.inputs[0])[axis] == 1
        axis = _moved(later, axis)
        if axis is None and single:
            return True, None
    return axis is not None, axis


def _own_axis(node: ir.Node) -> int | None:
    """Return the axis of the features in the output of a linear layer; None for any other operator."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return 1
    if node.op_type == "MatMul" and any(value is not None and value.const_value is not None for value in node.inputs):
        first = node.inputs[0]
        return len(dims(node.outputs[0])) - (1 if first is None or first.const_value is None else 2)
    return None


def _moved(node: ir.Node, axis: int | None) -> int | None:
    """Return the place of an input axis in the output of a `MOVES` node; None if the node splits or merges it."""
    if axis is None:
        return None
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if node.op_type == "Transpose":
        order = list(node.attributes.get_ints("perm", ()) or range(len(before))[::-1])
        return order.index(axis)
    rest = _elements(before[axis + 1 :])
    same = [i for i, size in enumerate(after) if size == before[axis] and _elements(after[i + 1 :]) == rest]
    return same[0] if len(same) == 1 and rest is not None else None


def _elements(sizes: Sequence[int | str]) -> int | None:
    """Return the product of the sizes; None if a size is symbolic."""
    return math.prod(int(size) for size in sizes) if all(isinstance(size, int) for size in sizes) else None


def _kind(shape: Sequence[int | str], axis: int | None, ending: Ending) -> Kind:
    if len(shape) > 2:
        return "dense"
    return "binary" if axis is None or shape[axis] == 1 else "classes"


def _refuse_choices(output: ir.Value, ending: Ending) -> None:
    """Raise UnsupportedError if operators change the predictions before the output."""
    node, mixed = ending.last, []
    while node is not None and node.op_type in MIXES | MOVES and not ending.kind:
        mixed += [node] if node.op_type in MIXES else []
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None:
        return
    if node.op_type in CHOICES:
        raise UnsupportedError(
            f"the output holds the choice of `{node.op_type}`, not scores: a choice has no gradient",
            where=f"{_named(output)}, node `{node.name}`",
            hint=f"export the model without `{node.op_type}`, or choose an output with the scores: `--logits NAME`",
        )
    if mixed and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
        operators = ", ".join(f"`{other.op_type}`" for other in mixed)
        raise UnsupportedError(
            f"{operators} behind the last {node.op_type}: the outputs are no longer probabilities",
            where=f"{_named(output)}, node `{node.name}`",
            hint=f"export the model without its last {node.op_type}, or choose another output: `--logits NAME`",
        )


def _refuse_contradiction(output: ir.Value, head: Head, ending: Ending, option: str) -> None:
    """Raise UnsupportedError if the output cannot have this `head`."""
    rank = len(head.shape)
    fitting = _fitting(rank, head.outputs, ending)
    if head.kind in fitting:
        return
    if not fitting:
        raise UnsupportedError(
            f"the model ends in a {ending.kind} over a single class, which is always 1",
            where=_named(output),
            hint=f"export the model without its last {ending.kind}, or use a method without a loss",
        )
    if option == "auto":
        raise UnsupportedError(
            "the model ends in a Sigmoid: the outputs are no distribution over classes",
            where=_named(output),
            hint="`--head binary` for independent answers; if the classes exclude each other, export the model "
            "without its last Sigmoid; or use a method without a loss",
        )
    ends = f" and ends in a {ending.kind}" if ending.kind else ""
    raise UnsupportedError(
        f"the output has {rank} axes{ends}, but a head `{option}` is {FORMS[head.kind]}",
        where=f"{_named(output)}, `--head {option}`",
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
    return kinds


def _named(output: ir.Value) -> str:
    return f"output `{output.name}` {output.shape}"
