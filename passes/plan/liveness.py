"""How many bytes a step holds at once: allocate and free in the order of the graphs and of their nodes.

The engine's rules, as measured (docs/decisions/engine-memory.md): a tensor lives from its node to its last reader, what
enters a run lives until the run ends, and an activation function writes into an input that nobody else reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.keys import SAMPLE_BYTES
from ttac.passes.plan.plan import nbytes

# Their output is their first input, seen otherwise.
VIEWS = frozenset("Reshape Flatten Squeeze Unsqueeze Identity".split())
# They may write into an input of the same size, in 1.18, 1.19 and 1.31 alike; arithmetic (Add, Mul, Exp) never does.
IN_PLACE = frozenset(
    "Celu Clip Elu HardSigmoid LeakyRelu LogSoftmax Relu ScatterElements Selu Sigmoid Softmax Softplus Softsign Tanh "
    "ThresholdedRelu".split()
)


@dataclass(frozen=True)
class Moment:
    """When most is alive: the graph, the node that runs, and the bytes."""

    graph: str = ""
    node: str = ""
    bytes: int = 0


def peak(graphs: Mapping[str, ir.Model], order: Sequence[str], batch: int, sizes: str = SAMPLE_BYTES) -> Moment:
    """The moment of most bytes while the graphs run in `order`, at `batch` samples; inputs and state do not count.

    Where `sizes` depend on the data, they are the largest or, with LIKELY_BYTES, the usual ones.
    """
    last = {str(v.name): i for i, name in enumerate(order) for v in graphs[name].graph.inputs}
    held: dict[str, int] = {}
    highest = Moment()
    for position, name in enumerate(order):
        walk = _Walk(name, batch, held, sizes)
        found = walk.through(graphs[name].graph)
        highest = max(highest, found, key=lambda moment: moment.bytes)
        made = {str(v.name): bytes_of(v, batch, sizes) for v in graphs[name].graph.outputs}
        held = {v: size for v, size in {**held, **made}.items() if last.get(v, -1) > position}
    return highest


def bytes_over_time(nodes: Iterable[ir.Node], batch: int, sizes: str = SAMPLE_BYTES) -> np.ndarray:
    """Bytes alive while each of `nodes` runs, int64 [nodes], at `batch` samples, of what they make themselves."""
    nodes = list(nodes)
    return alive_from(lifetimes(nodes, batch, sizes), 0, len(nodes))


def lifetimes(nodes: Iterable[ir.Node], batch: int, sizes: str = SAMPLE_BYTES) -> np.ndarray:
    """Of each tensor that `nodes` make the positions of its first and its last moment, and its bytes: int64 [n, 3]."""
    walk = _Walk("", batch, {}, sizes)
    begun: dict[ir.Value, int] = {}
    found: list[tuple[int, int, int]] = []
    last = -1
    for last, node in enumerate(nodes):
        begun.update(dict.fromkeys(walk.allocate(node), last))
        found += [(begun[value], last, size) for value, size in walk.free(node)]
    found += [(begun[value], last, size) for value, size in walk.alive.items()]
    return np.array(found, np.int64).reshape(-1, 3)


def alive_from(lives: np.ndarray, start: int, end: int) -> np.ndarray:
    """Bytes alive at each position from `start` to before `end`, int64, of tensors that begin there."""
    first, last, size = lives[lives[:, 0] >= start].T
    return _sums(first - start, last + 1 - start, size, end - start)


def carried(lives: np.ndarray, end: int) -> np.ndarray:
    """Bytes alive at each position before `end`, int64, of tensors that begin in front of it."""
    first, last, size = lives.T
    return _sums(first + 1, last + 1, size, end)


def _sums(first: np.ndarray, behind: np.ndarray, size: np.ndarray, count: int) -> np.ndarray:
    """At each of `count` positions, the sum of the sizes that are there from `first` to before `behind`."""
    change = np.zeros(count + 1, np.int64)
    np.add.at(change, first, size)
    np.add.at(change, behind, -size)
    return np.cumsum(change)[:-1]


def bytes_of(value: ir.Value, batch: int, sizes: str = SAMPLE_BYTES) -> int:
    """Bytes of `value` at `batch` samples; 0 where its shape is not known, which only small ones have."""
    if sizes in value.meta:
        return int(batch * value.meta[sizes])
    if value.shape is None or value.dtype is None or any(s is None for s in _sizes(value.shape)):
        maker = value.producer()
        seen = maker.inputs[0] if maker is not None and maker.op_type in VIEWS else None
        return bytes_of(seen, batch, sizes) if seen is not None else 0
    return nbytes(value, batch)


class _Walk:
    """One run: `held` are the residuals that are alive throughout, by name."""

    def __init__(self, name: str, batch: int, held: Mapping[str, int], sizes: str = SAMPLE_BYTES) -> None:
        self.name, self.batch, self.held, self.sizes = name, batch, held, sizes
        self.root: dict[ir.Value, ir.Value] = {}
        self.readers: dict[ir.Value, int] = {}
        self.alive: dict[ir.Value, int] = {}
        self.total = 0

    def through(self, graph: ir.Graph) -> Moment:
        """The highest moment of the run."""
        outside, highest = sum(self.held.values()), Moment(self.name)
        for node in graph:
            self.allocate(node)
            highest = max(highest, Moment(self.name, str(node.name), outside + self.total), key=lambda m: m.bytes)
            self.free(node)
        return highest

    def size(self, value: ir.Value) -> int:
        """Bytes of `value`."""
        return bytes_of(value, self.batch, self.sizes)

    def allocate(self, node: ir.Node) -> list[ir.Value]:
        """Count what the node writes; those of its outputs that have room of their own."""
        inputs, own = [v for v in node.inputs if v is not None], []
        for value in node.outputs:
            if not value.name:
                continue
            root = self._shared(node, inputs, value)
            self.root[value] = root
            self.readers[root] = self.readers.get(root, 0) + len(value.uses()) + value.is_graph_output()
            if root is value:
                own.append(value)
                self.alive[value] = self.size(value)
                self.total += self.alive[value]
        return own

    def _shared(self, node: ir.Node, inputs: list[ir.Value], value: ir.Value) -> ir.Value:
        """The value whose memory the output takes: its own, or an input's."""
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
        """Drop what the node was the last to read; what that was, with its bytes."""
        roots = [self.root.get(value) for value in node.inputs if value is not None]
        for root in roots:
            if root is not None:
                self.readers[root] -= 1
        gone = []
        for root in dict.fromkeys([*roots, *(self.root.get(value) for value in node.outputs)]):
            if root is not None and root in self.alive and self.readers[root] <= 0:
                gone.append((root, self.alive.pop(root)))
                self.total -= gone[-1][1]
        return gone


def _sizes(shape: ir.Shape) -> list[int | str | None]:
    return [size if isinstance(size, int) else size.value for size in shape]
