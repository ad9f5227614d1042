"""One pass through a bound program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ttac.errors import VerificationError
from ttac.runtime.json_values import HINT
from ttac.runtime.program.words import Repeat, Reset, Run, When, Word
from ttac.runtime.program.world import Graph, Tensor, World
from ttac.runtime.tensors import along


@dataclass
class DeferredRun:
    """A run that the commit does; it keeps its input tensors until `release`."""

    graph: Graph
    fetch: tuple[str, ...]
    feed: dict[str, Tensor]

    def __call__(self) -> dict[str, Tensor]:
        """State tensor -> next value, for each state tensor that the graph updates."""
        outputs = self.graph.run(self.feed, self.fetch)
        return {self.graph.state[name]: tensor for name, tensor in zip(self.fetch, outputs)}

    def release(self) -> None:
        """Free the input tensors; the run cannot happen again."""
        self.feed = {}


@dataclass
class Step:
    """One pass through a program: its values, and its changes of the state.

    Attributes:
        values: user inputs, and outputs of the graphs that ran and can still be read.
        pending: state tensors with the value they get if the step is committed.
        deferred: runs for the commit, in order; each gives further pending state.
        reported: scalars for `adapter.stats`.
    """

    world: World
    values: Mapping[str, Tensor]
    pending: dict[str, Tensor] = field(default_factory=dict)
    deferred: list[DeferredRun] = field(default_factory=list)
    reported: dict[str, float] = field(default_factory=dict)

    def perform(self, words: Sequence[Word]) -> list[Tensor] | None:
        """Do the words in order; return the returned tensors, or None if the words hold no `return`."""
        for word in words:
            result: list[Tensor] | None = None
            if isinstance(word, Run):
                self._run(word)
            elif isinstance(word, When):
                result = self.perform(word.then if self._is_positive(word.value) else word.otherwise)
            elif isinstance(word, Repeat):
                for _ in range(word.times):
                    self.perform(word.do)
            elif isinstance(word, Reset):
                self.pending.update((name, self.world.initial[name]) for name in word.names)
            else:
                result = [self.find(name) for name in word.names]
            if result is not None:
                return result
        return None

    def find(self, name: str) -> Tensor:
        """The tensor a name means now."""
        for place in (self.values, self.pending, self.world.state, self.world.weights):
            if name in place:
                return place[name]
        raise KeyError(name)

    def _run(self, word: Run) -> None:
        graph, outputs = self.world.graphs[word.graph], dict[str, Tensor]()
        if word.fetch:
            feed = {name: self._rows(name, word) for name in graph.inputs}
            if word.deferred:
                self._defer(graph, word, feed)
            else:
                outputs = self._run_now(graph, word, feed)
        # A new dict: whoever made the old one may hold it, and with it every residual until the step ends.
        self.values = {name: value for name, value in {**self.values, **outputs}.items() if name in word.keep}

    def _defer(self, graph: Graph, word: Run, feed: dict[str, Tensor]) -> None:
        self.deferred.append(DeferredRun(graph, word.fetch, feed))
        self.pending = {name: value for name, value in self.pending.items() if name not in graph.state.values()}

    def _run_now(self, graph: Graph, word: Run, feed: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = dict(zip(word.fetch, graph.run(feed, word.fetch)))
        feed.clear()
        self.pending.update((graph.state[name], tensor) for name, tensor in outputs.items() if name in graph.state)
        self.reported.update(
            (graph.stats[name], self._scalar(tensor)) for name, tensor in outputs.items() if name in graph.stats
        )
        return outputs

    def _rows(self, name: str, word: Run) -> Tensor:
        tensor = self.find(word.feed.get(name, name))
        axis = self.world.inputs.get(name)
        if not word.rows or axis is None:
            return tensor
        device = self.world.device
        return device.tensor(device.array(tensor)[along(axis, slice(word.rows))])

    def _is_positive(self, name: str) -> bool:
        return self._scalar(self.find(name)) > 0

    def _scalar(self, tensor: Tensor) -> float:
        array = self.world.device.array(tensor)
        if not array.size:
            raise VerificationError("a graph gave an empty tensor as a scalar", where="the program", hint=HINT)
        return float(array.reshape(-1)[0])
