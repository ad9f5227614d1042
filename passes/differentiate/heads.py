"""What a model's output predicts: one class a sample, yes-or-no answers, or a class at every position.

Told from the output's shape, from the Softmax or Sigmoid it ends in, and from the layer that made its features.
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
    "binary": "answers that do not exclude each other, without a Softmax",
    "dense": "[N, classes, ...] with three axes or more, without a Sigmoid over several classes",
}
# Operators that only move values about: what enters them can be moved likewise.
MOVES = frozenset("Flatten Reshape Squeeze Transpose Unsqueeze".split())
# Operators that pick, mix or round predictions: behind one, they are no longer those of a Softmax or Sigmoid.
MIXES = frozenset("Cast Clip Concat DepthToSpace Gather GatherND Pad Resize Slice Split".split())
# Operators that hand out the numbers of classes.
CHOICES = frozenset("ArgMax ArgMin Hardmax NonMaxSuppression TopK".split())
# Operators that leave every axis where it is; what they read first is what they are about.
STAYS = frozenset(
    "Add AveragePool BatchNormalization Cast Clip DepthToSpace Div Elu Gelu HardSigmoid HardSwish LeakyRelu LogSoftmax "
    "InstanceNormalization LayerNormalization MaxPool Mul PRelu Pad Relu Resize Sigmoid Slice Softmax Softplus Sub "
    "Tanh".split()
)


@dataclass(frozen=True)
class Head:
    """How an output is read.

    Attributes:
        kind: "classes" (of each sample), "binary" (independent answers) or "dense" (classes of each position).
        shape: of the output, and of the scores behind it.
        axis: that of the classes or answers; None for [N], one answer a sample.
        values: what the output holds.
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
        """Whether each number answers a question of its own, by a sigmoid: also where a dense head has one."""
        return self.kind == "binary" or self.outputs == 1

    @property
    def classes(self) -> int:
        """Between how many classes a prediction decides."""
        return 2 if self.binary else self.outputs

    @property
    def positions(self) -> tuple[int | str, ...]:
        """The shape of what has a prediction of its own, and so of the losses: [N], or [N, H, W] where dense."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.axis)

    @property
    def described(self) -> dict[str, Any]:
        """The head as a manifest says it."""
        return {key: value for key, value in asdict(self).items() if key != "shape"}

    def __str__(self) -> str:
        where = "" if self.axis is None else f" along axis {self.axis}"
        answers = "yes or no" if self.outputs == 1 else f"{self.outputs} times yes or no"
        what = answers if self.binary else f"{self.outputs} classes"
        return f"{self.kind}: {what}{where}, {self.values.replace('_', ' ')}"


def decide_head(output: ir.Value, asked: str = "auto") -> Head:
    """How to read the model's `output`, which is in normal form; `asked` is "auto" or one of the kinds.

    Raises UnsupportedError where the output is no prediction, could be read in two ways, or contradicts `asked`.
    """
    ending = _ending(output)
    _refuse_choices(output, ending)
    shape = tuple(dims(output))
    axis = _class_axis(output, ending, asked)
    kind = _kind(shape, axis, ending) if asked == "auto" else next(kind for kind in FORMS if kind == asked)
    head = Head(kind, shape, axis, VALUES[ending.kind])
    _refuse_contradiction(output, head, ending, asked)
    return head


def scores_of(op: Builder, output: ir.Value) -> ir.Value:
    """What the predictions are computed from, in the shape of `output`: before its Softmax or Sigmoid if it has one."""
    ending = _ending(output)
    if ending.scores is None:
        return output
    found = ending.scores
    for node in ending.moves:
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        found = op.node(node.op_type, [found, *node.inputs[1:]], attributes)
        found.shape = node.outputs[0].shape
    return found


@dataclass(frozen=True)
class Ending:
    """The last operators of a model.

    Attributes:
        kind: "Softmax", "LogSoftmax", "Sigmoid", or "" for none of them.
        axis: the one that it normalises, in the axes of `scores`; scores: what enters it.
        moves: the nodes between it and the output, in order.
        before: the first node, from the end, that does not only move values.
    """

    kind: str
    axis: int | None
    scores: ir.Value | None
    moves: tuple[ir.Node, ...]
    before: ir.Node | None


def _ending(output: ir.Value) -> Ending:
    moves: list[ir.Node] = []
    node = output.producer()
    while node is not None and node.op_type in MOVES and node.inputs[0] is not None:
        moves.insert(0, node)
        node = node.inputs[0].producer()
    if node is None:
        return Ending("", None, None, tuple(moves), None)
    if node.op_type in ("Softmax", "LogSoftmax"):
        x = node.inputs[0]
        return Ending(node.op_type, node.attributes.get_int("axis", -1) % len(dims(x)), x, tuple(moves), node)
    if node.op_type == "Sigmoid":
        return Ending("Sigmoid", None, node.inputs[0], tuple(moves), node)
    if (spelled := _spelled_softmax(node)) is not None:
        return Ending("Softmax", spelled[1], spelled[0], tuple(moves), node)
    return Ending("", None, None, tuple(moves), node)


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


def _class_axis(output: ir.Value, ending: Ending, asked: str) -> int | None:
    """The axis of the classes: that of the Softmax, else that of the last linear layer's features, else the second.

    None where there is one number a position.  Raises UnsupportedError for three axes without such a layer: [N, C, L]
    and [N, T, C] look alike.
    """
    shape = dims(output)
    if ending.axis is not None:
        return _softmax_axis(output, ending)
    if len(shape) < 3:
        return 1 if len(shape) == 2 else None
    told, axis = _feature_axis(output)
    if told or asked == "binary":
        return axis
    if len(shape) == 3 and asked == "auto":
        raise UnsupportedError(
            "the output has three axes, and nothing tells which one holds the classes",
            where=_named(output),
            hint="`--head dense` takes the second, [N, classes, positions]; else export a Transpose to that form",
        )
    return 1


def _softmax_axis(output: ir.Value, ending: Ending) -> int:
    """Where the axis that the Softmax normalises lies in the output."""
    axis = ending.axis
    for node in ending.moves:
        axis = _moved(node, axis)
    if not axis:
        raise UnsupportedError(
            f"the model ends in a {ending.kind} over an axis that its output does not have as an axis of classes",
            where=f"{_named(output)}, behind node `{ending.before.name if ending.before else ''}`",
            hint=f"export it without its last {ending.kind}, or use a method without a loss",
        )
    return axis


def _feature_axis(value: ir.Value | None) -> tuple[bool, int | None]:
    """Whether the features of the last linear layer can be followed to `value`, and the axis that holds them there.

    The axis is None where it is unclear, or where a single feature was squeezed away.
    """
    passed: list[ir.Node] = []
    node = None if value is None else value.producer()
    while node is not None and node.op_type in MOVES | STAYS:
        passed.append(node)
        node = max((v.producer() for v in node.inputs[:2] if v is not None), key=lambda maker: maker is not None)
    axis = None if node is None else _made(node)
    for later in reversed([other for other in passed if other.op_type in MOVES]):
        if axis is None:
            break
        single = dims(later.inputs[0])[axis] == 1
        axis = _moved(later, axis)
        if axis is None and single:
            return True, None
    return axis is not None, axis


def _made(node: ir.Node) -> int | None:
    """The axis along which a linear layer puts its features; None for any other operator."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return 1
    if node.op_type == "MatMul" and any(value is not None and value.const_value is not None for value in node.inputs):
        first = node.inputs[0]
        return len(dims(node.outputs[0])) - (1 if first is None or first.const_value is None else 2)
    return None


def _moved(node: ir.Node, axis: int | None) -> int | None:
    """Where an operator of `MOVES` puts an axis of its input; None if it takes it apart or merges it."""
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
    """The product of known sizes; None if one is symbolic."""
    return math.prod(int(size) for size in sizes) if all(isinstance(size, int) for size in sizes) else None


def _kind(shape: Sequence[int | str], axis: int | None, ending: Ending) -> Kind:
    if len(shape) > 2:
        return "dense"
    return "binary" if axis is None or shape[axis] == 1 else "classes"


def _refuse_choices(output: ir.Value, ending: Ending) -> None:
    """Raise UnsupportedError where the predictions were made into something else before the output."""
    node, mixed = ending.before, []
    while node is not None and node.op_type in MIXES | MOVES and not ending.kind:
        mixed += [node] if node.op_type in MIXES else []
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None:
        return
    hint = "export the model without it, or choose an output that gives the scores: `--logits NAME`"
    if node.op_type in CHOICES:
        raise UnsupportedError(
            f"the output holds what `{node.op_type}` chose, not the scores it chose from: it has no gradient",
            where=f"{_named(output)}, node `{node.name}`",
            hint=hint,
        )
    if mixed and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid"):
        operators = ", ".join(f"`{other.op_type}`" for other in mixed)
        raise UnsupportedError(
            f"{operators} behind the last {node.op_type}: the outputs are no longer its probabilities",
            where=f"{_named(output)}, node `{node.name}`",
            hint=f"export the model without its last {node.op_type}, or choose another output: `--logits NAME`",
        )


def _refuse_contradiction(output: ir.Value, head: Head, ending: Ending, asked: str) -> None:
    """Raise UnsupportedError where the output cannot be read as `head`."""
    rank = len(head.shape)
    fitting = _fitting(rank, head.outputs, ending)
    if head.kind in fitting:
        return
    if not fitting:
        raise UnsupportedError(
            f"the model ends in a {ending.kind} over a single class, which is 1 whatever the input",
            where=_named(output),
            hint=f"export it without its last {ending.kind}, or use a method without a loss",
        )
    if asked == "auto":
        raise UnsupportedError(
            "the model ends in a Sigmoid: its outputs are no distribution over classes",
            where=_named(output),
            hint="`--head binary` if they are independent answers; if its classes exclude each other, export it "
            "without its last Sigmoid; or use a method without a loss",
        )
    ends = f" and ends in a {ending.kind}" if ending.kind else ""
    raise UnsupportedError(
        f"the output has {rank} axes{ends}, but a head `{asked}` is {FORMS[head.kind]}",
        where=f"{_named(output)}, `--head {asked}`",
        hint=f"`--head {fitting[0]}`, or leave the option out",
    )


def _fitting(rank: int, outputs: int, ending: Ending) -> list[Kind]:
    """The kinds that such an output can be read as; the likeliest first."""
    softmax, sigmoid = ending.kind in ("Softmax", "LogSoftmax"), ending.kind == "Sigmoid"
    found: list[Kind] = []
    if rank == 2 and outputs > 1 and not sigmoid:
        found.append("classes")
    if rank > 2 and not (sigmoid and outputs > 1) and not (softmax and outputs == 1):
        found.append("dense")
    if not softmax:
        found.append("binary")
    return found


def _named(output: ir.Value) -> str:
    return f"output `{output.name}` {output.shape}"
