"""How many bytes a step holds at once: allocate and free in the order of the graphs and of their nodes.

The engine's rules, as measured (docs/decisions/engine-memory.md): a tensor lives from its node to its last reader, what
enters a run lives until the run ends, and an elementwise operator writes into an input that nobody else reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ttac.passes.batch import sample_size
from ttac.passes.plan import SAMPLE_BYTES

# Their output is their first input, seen otherwise.
VIEWS = frozenset("Reshape Flatten Squeeze Unsqueeze Identity".split())
# They may write into an input of the same size.
IN_PLACE = frozenset(
    "Abs Add Cast Ceil Clip Div Elu Erf Exp Floor Gelu HardSigmoid HardSwish LeakyRelu Log Max Min Mul Neg Pow "
    "Reciprocal Relu Round Sigmoid Softmax Softplus Sqrt Sub Sum Tanh Where".split()
)


@dataclass(frozen=True)
class Moment:
    """When most is alive: the graph, the node that runs, and the bytes."""

    graph: str = ""
    node: str = ""
    bytes: int = 0


def peak(graphs: Mapping[str, ir.Model], order: Sequence[str], batch: int) -> Moment:
    """The moment of most bytes while the graphs run in `order`, at `batch` samples; inputs and state do not count."""
    last = {str(v.name): i for i, name in enumerate(order) for v in graphs[name].graph.inputs}
    held: dict[str, int] = {}
    highest = Moment()
    for position, name in enumerate(order):
        walk = _Walk(name, batch, held)
        found = walk.through(graphs[name].graph)
        highest = max(highest, found, key=lambda moment: moment.bytes)
        made = {str(v.name): walk.size(v) for v in graphs[name].graph.outputs}
        held = {v: size for v, size in {**held, **made}.items() if last.get(v, -1) > position}
    return highest


def bytes_over_time(graph: ir.Graph, batch: int) -> np.ndarray:
    """Bytes alive while each node runs, int64 [nodes], at `batch` samples; inputs and state do not count."""
    walk = _Walk("", batch, {})
    found = []
    for node in graph:
        walk.allocate(node)
        found.append(walk.total)
        walk.free(node)
    return np.array(found, np.int64)


class _Walk:
    """One run: `held` are the residuals that are alive throughout, by name."""

    def __init__(self, name: str, batch: int, held: Mapping[str, int]) -> None:
        self.name, self.batch, self.held = name, batch, held
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
        """Bytes of `value`; 0 where its shape is not known, which only small ones have."""
        if SAMPLE_BYTES in value.meta:
            return int(self.batch * value.meta[SAMPLE_BYTES])
        if value.shape is None or value.dtype is None or any(s is None for s in _sizes(value.shape)):
            return 0
        symbolic = any(isinstance(size, str) for size in _sizes(value.shape))
        return (self.batch if symbolic else 1) * sample_size(value.shape) * value.dtype.bitwidth // 8

    def allocate(self, node: ir.Node) -> None:
        """Count what the node writes."""
        inputs = [v for v in node.inputs if v is not None]
        for value in node.outputs:
            if not value.name:
                continue
            root = self._shared(node, inputs, value)
            self.root[value] = root
            self.readers[root] = self.readers.get(root, 0) + len(value.uses()) + value.is_graph_output()
            if root is value:
                self.alive[value] = self.size(value)
                self.total += self.alive[value]

    def _shared(self, node: ir.Node, inputs: list[ir.Value], value: ir.Value) -> ir.Value:
        """The value whose memory the output takes: its own, or an input's."""
        if node.op_type in VIEWS and inputs:
            return self.root.get(inputs[0], value)
        if node.op_type in IN_PLACE:
            for source in inputs:
                root = self.root.get(source)
                if root in self.alive and self.readers[root] == 1 and self.size(source) == self.size(value):
                    return root
        return value

    def free(self, node: ir.Node) -> None:
        """Drop what the node was the last to read."""
        roots = [self.root.get(value) for value in node.inputs if value is not None]
        for root in roots:
            if root is not None:
                self.readers[root] -= 1
        for root in {*roots, *(self.root.get(value) for value in node.outputs)}:
            if root is not None and root in self.alive and self.readers[root] <= 0:
                self.total -= self.alive.pop(root)


def _sizes(shape: ir.Shape) -> list[int | str | None]:
    return [size if isinstance(size, int) else size.value for size in shape]
