"""Bytes alive during a step: allocate and free in the order of the graphs and of their nodes.

The rules follow measurements of the engine (docs/decisions/engine-memory.md).  A tensor lives from its node to its last
reader.  An input of a run lives until the run ends.  An activation function writes into an input without other readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.keys import SAMPLE_BYTES
from ttac.passes.plan.decisions import nbytes

# Operators whose output is a view of their first input.
VIEWS = frozenset("Reshape Flatten Squeeze Unsqueeze Identity".split())
# Operators that may write into an input of the same size, in 1.18, 1.19 and 1.31 alike.  Arithmetic (Add, Mul, Exp)
# never does.
IN_PLACE = frozenset(
    "Celu Clip Elu HardSigmoid LeakyRelu LogSoftmax Relu ScatterElements Selu Sigmoid Softmax Softplus Softsign Tanh "
    "ThresholdedRelu".split()
)


@dataclass(frozen=True)
class Moment:
    """The moment of most bytes: the graph, the running node, and the bytes."""

    graph: str = ""
    node: str = ""
    bytes: int = 0


def peak(graphs: Mapping[str, ir.Model], order: Sequence[str], batch: int, sizes: str = SAMPLE_BYTES) -> Moment:
    """Return the moment of most bytes while the graphs run in `order`, at `batch` samples, without inputs and state.

    Where a size depends on the data, `sizes` selects the metadata key: SAMPLE_BYTES for the largest size, LIKELY_BYTES
    for the usual size.
    """
    last = {str(v.name): i for i, name in enumerate(order) for v in graphs[name].graph.inputs}
    held: dict[str, int] = {}
    highest = Moment()
    for position, name in enumerate(order):
        moment = _Walk(name, batch, held, sizes).through(graphs[name].graph)
        highest = max(highest, moment, key=lambda moment: moment.bytes)
        outputs = {str(v.name): bytes_of(v, batch, sizes) for v in graphs[name].graph.outputs}
        held = {v: size for v, size in {**held, **outputs}.items() if last.get(v, -1) > position}
    return highest


def bytes_over_time(nodes: Iterable[ir.Node], batch: int, sizes: str = SAMPLE_BYTES) -> np.ndarray:
    """Return the bytes of the outputs of `nodes` alive while each node runs, int64 [nodes], at `batch` samples."""
    nodes = list(nodes)
    return alive_from(lifetimes(nodes, batch, sizes), 0, len(nodes))


def lifetimes(nodes: Iterable[ir.Node], batch: int, sizes: str = SAMPLE_BYTES) -> np.ndarray:
    """Return first position, last position and bytes of every tensor that `nodes` allocate, int64 [tensors, 3]."""
    walk = _Walk("", batch, {}, sizes)
    begun: dict[ir.Value, int] = {}
    rows: list[tuple[int, int, int]] = []
    last = -1
    for last, node in enumerate(nodes):
        begun.update(dict.fromkeys(walk.allocate(node), last))
        rows += [(begun[value], last, size) for value, size in walk.free(node)]
    rows += [(begun[value], last, size) for value, size in walk.alive.items()]
    return np.array(rows, np.int64).reshape(-1, 3)


def alive_from(lives: np.ndarray, start: int, end: int) -> np.ndarray:
    """Return the bytes at each position in [start, end) of tensors that begin there, int64."""
    first, last, size = lives[lives[:, 0] >= start].T
    return _sums(first - start, last + 1 - start, size, end - start)


def carried(lives: np.ndarray, end: int) -> np.ndarray:
    """Return the bytes at each position before `end` of tensors that began at an earlier position, int64."""
    first, last, size = lives.T
    return _sums(first + 1, last + 1, size, end)


def _sums(first: np.ndarray, after: np.ndarray, size: np.ndarray, count: int) -> np.ndarray:
    """Return, at each of `count` positions, the sum of the sizes with first <= position < after."""
    change = np.zeros(count + 1, np.int64)
    np.add.at(change, first, size)
    np.add.at(change, after, -size)
    return np.cumsum(change)[:-1]


def bytes_of(value: ir.Value, batch: int, sizes: str = SAMPLE_BYTES) -> int:
    """Return the bytes of `value` at `batch` samples; 0 for an unknown shape, which only small values have."""
    if sizes in value.meta:
        return int(batch * value.meta[sizes])
    if value.shape is None or value.dtype is None or any(s is None for s in _sizes(value.shape)):
        producer = value.producer()
        viewed = producer.inputs[0] if producer is not None and producer.op_type in VIEWS else None
        return bytes_of(viewed, batch, sizes) if viewed is not None else 0
    return nbytes(value, batch)


class _Walk:
    """One run of a graph; the residuals `held`, bytes by name, stay alive throughout."""

    def __init__(self, name: str, batch: int, held: Mapping[str, int], sizes: str = SAMPLE_BYTES) -> None:
        self.name, self.batch, self.held, self.sizes = name, batch, held, sizes
        self.root: dict[ir.Value, ir.Value] = {}
        self.readers: dict[ir.Value, int] = {}
        self.alive: dict[ir.Value, int] = {}
        self.total = 0

    def through(self, graph: ir.Graph) -> Moment:
        """Return the moment of most bytes of the run."""
        outside, highest = sum(self.held.values()), Moment(self.name)
        for node in graph:
            self.allocate(node)
            highest = max(highest, Moment(self.name, str(node.name), outside + self.total), key=lambda m: m.bytes)
            self.free(node)
        return highest

    def size(self, value: ir.Value) -> int:
        """Return the bytes of `value`."""
        return bytes_of(value, self.batch, self.sizes)

    def allocate(self, node: ir.Node) -> list[ir.Value]:
        """Count the outputs of `node`; return the outputs that take memory beyond an input's."""
        inputs, allocated = [v for v in node.inputs if v is not None], []
        for value in node.outputs:
            if not value.name:
                continue
            root = self._owner(node, inputs, value)
            self.root[value] = root
            self.readers[root] = self.readers.get(root, 0) + len(value.uses()) + value.is_graph_output()
            if root is value:
                allocated.append(value)
                self.alive[value] = self.size(value)
                self.total += self.alive[value]
        return allocated

    def _owner(self, node: ir.Node, inputs: list[ir.Value], value: ir.Value) -> ir.Value:
        """Return the value whose memory the output `value` uses: the output itself, or an input of `node`."""
        if node.op_type in VIEWS and inputs:
            return self.root.get(inputs[0], value)
        if node.op_type in IN_PLACE:
            for source in inputs:
                root = self.root.get(source)
                same = self.size(source) == self.size(value)
                if same and root in self.alive and self.readers[root] == 1:
                    return root
        return value

    def free(self, node: ir.Node) -> list[tuple[ir.Value, int]]:
        """Free the tensors whose last reader is `node`; return each with its bytes."""
        roots = [self.root.get(value) for value in node.inputs if value is not None]
        for root in roots:
            if root is not None:
                self.readers[root] -= 1
        freed = []
        for root in dict.fromkeys([*roots, *(self.root.get(value) for value in node.outputs)]):
            if root is not None and root in self.alive and self.readers[root] <= 0:
                freed.append((root, self.alive.pop(root)))
                self.total -= freed[-1][1]
        return freed


def _sizes(shape: ir.Shape) -> list[int | str | None]:
    return [size if isinstance(size, int) else size.value for size in shape]
