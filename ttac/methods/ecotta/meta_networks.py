"""Meta networks beside the parts of a frozen network (Song et al., arXiv:2303.01904, Figure 3 and Algorithm 1).

A part turns its input x into features u.  With the meta network, it gives norm(u) + relu(norm(conv(x))), where conv has
filters of 3x3 and the norms take the statistics of the batch.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac import methods
from ttac.errors import UnsupportedError
from ttac.methods.ecotta.warmup import labels_of, warmed_up
from ttac.passes.differentiate.losses import mean
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.context import Subject
from ttac.passes.step_graphs.linear_head import class_head

ROOM = "refine"
APART = ".apart"
EPSILON = 1e-5
WHERE = "`--method ecotta`"


def check(subject: Subject) -> None:
    """Raise UnsupportedError without calibration data, and unless the model predicts one class of each sample."""
    class_head(subject, "`ecotta` learns from the entropy of a class")
    if subject.samples is None:
        others = ", ".join(f"`{name}`" for name in methods.that_train())
        raise UnsupportedError(
            "the meta networks warm up on source samples, and there are none",
            where=WHERE,
            hint=f"give source samples, `--calibration PATH`; methods that need none: {others}",
        )


def with_meta_networks(subject: Subject) -> list[StateTensor]:
    """Add a warmed-up meta network to each part, in place; all their tensors train.

    `meta.<k>.apart` is the mean absolute distance of part k from u, with x and u as constants.  Raises UnsupportedError
    for a network without blocks.
    """
    labels = labels_of(subject)
    first, ends = parts(subject.model.graph, int(subject.settings["parts"]))
    random = np.random.RandomState(int(subject.settings["seed"]))
    state: list[StateTensor] = []
    x = first
    for number, end in enumerate(ends):
        x, tensors = _attached(subject, f"meta.{number}", x, end, random)
        state += tensors
    return warmed_up(subject, state, labels)


def parts(graph: ir.Graph, count: int) -> tuple[ir.Value, list[ir.Value]]:
    """The input of the first part, and the features that each part ends with.

    The blocks divide as in the paper: all parts but the last hold blocks/(parts + 1) blocks, at least one.
    """
    first, *ends = blocks(graph)
    count = min(count, len(ends))
    size = max(1, len(ends) // (count + 1))
    return first, [*ends[size - 1 : size * (count - 1) : size], ends[-1]]


def blocks(graph: ir.Graph) -> list[ir.Value]:
    """The input of the first block, and the output of each block.

    A block ends where one feature map is all that goes on, and several operators read it, or where the maps end.
    Without branches, the inputs of the convolutions are such places.  Raises UnsupportedError without any block.
    """
    alone = _alone(graph)
    branching = [value for value in alone if len(_readers(value)) > 1]
    starts = branching if len(branching) > 1 else [v for v in alone if any(n.op_type == "Conv" for n in _readers(v))]
    found = [*starts, alone[-1]] if alone and starts and alone[-1] is not starts[-1] else starts
    if len(found) < 2:
        raise UnsupportedError(
            "no feature map is all that goes on from one part to the next, so there is no place for meta networks",
            where=WHERE,
            hint="`ttac inspect` lists the methods that fit",
        )
    return found


def _readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read the value, without those that compute its statistics."""
    return [use.node for use in value.uses() if use.node.op_type != "Moments"]


def _alone(graph: ir.Graph) -> list[ir.Value]:
    """The feature maps [N, C, H, W] that are all that goes on from the input at one place, in graph order."""
    nodes = list(graph)
    order = {node: index for index, node in enumerate(nodes)}
    data, alive = {id(graph.inputs[0])}, dict[ir.Value, int]()
    found: list[ir.Value] = []
    for index, node in enumerate(nodes):
        if not any(value is not None and id(value) in data for value in node.inputs):
            continue
        made = [v for v in node.outputs if v.dtype == ir.DataType.FLOAT and v.shape is not None and len(v.shape) > 1]
        data.update(id(value) for value in made)
        alive |= {value: max((order[use.node] for use in value.uses()), default=index) for value in made}
        alive = {value: last for value, last in alive.items() if last > index}
        maps = list(alive)
        if len(maps) == 1 and len(dims(maps[0])) == 4 and maps[0] not in found and dims(maps[0])[2] != 1:
            found.append(maps[0])
    return found


def _attached(
    subject: Subject, name: str, x: ir.Value, u: ir.Value, random: np.random.RandomState
) -> tuple[ir.Value, list[StateTensor]]:
    """The output of the part from `x` to `u` with a meta network, which the readers of `u` now read; its state."""
    graph, stride = subject.model.graph, _stride(x, u)
    cin, cout = int(dims(x)[1]), int(dims(u)[1])
    initial = {"conv": first_filters(cin, cout, random)}
    for norm in ("conv.norm", "norm"):
        initial |= {f"{norm}.scale": np.ones(cout, np.float32), f"{norm}.bias": np.zeros(cout, np.float32)}
    values = {key: state_input(graph, f"{name}.{key}", array) for key, array in initial.items()}
    readers = [(use.node, use.idx) for use in u.uses()]
    nodes, maker = list(graph), u.producer()
    assert maker is not None
    op = Builder(graph, ROOM, subject.model.opset_imports[""])
    with op.at(name, before=nodes[nodes.index(maker) + 1]):

        def meta(x: ir.Value, u: ir.Value) -> ir.Value:
            conv = op.Conv(x, values["conv"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[stride, stride])
            beside = op.Relu(_normalised(op, conv, values["conv.norm.scale"], values["conv.norm.bias"]))
            return op.Add(_normalised(op, u, values["norm.scale"], values["norm.bias"]), beside)

        out = meta(x, u)
        fixed = op.Detached(u)
        mean(op, op.Abs(op.Sub(meta(op.Detached(x), fixed), fixed)), f"{name}{APART}")
    for node, position in readers:
        node.replace_input_with(position, out)
    return out, [
        StateTensor(name=str(value.name), role="parameter", initial=initial[key], value=value)
        for key, value in values.items()
    ]


def _normalised(op: Builder, x: ir.Value, scale: ir.Value, bias: ir.Value) -> ir.Value:
    average, variance = op.Moments(x)
    return op.BatchNormalization(x, scale, bias, average, variance, epsilon=EPSILON)


def first_filters(cin: int, cout: int, random: np.random.RandomState) -> np.ndarray:
    """Filters [cout, cin, 3, 3] as PyTorch begins a convolution: even in +-1/sqrt(9 cin)."""
    bound = 1 / np.sqrt(9 * cin)
    return random.uniform(-bound, bound, (cout, cin, 3, 3)).astype(np.float32)


def _stride(x: ir.Value, u: ir.Value) -> int:
    """Stride of a convolution of 3x3 from the size of `x` to that of `u`; raises UnsupportedError if there is none."""
    before, after = ([int(size) for size in dims(value)[2:]] for value in (x, u))
    stride = max(1, round(before[0] / after[0]))
    if [(size - 1) // stride + 1 for size in before] != after:
        raise UnsupportedError(
            f"no convolution leads from maps of {before} to {after}",
            where=WHERE,
            hint="other parts: `--set parts=1`; `ttac inspect` lists the methods that fit",
        )
    return stride
