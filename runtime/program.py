"""The program of a bundle: six words, no method names.

    {"run": graph, "rows": k?, "feed": {input: value}?, "only": [outputs]?, "late": true?}
    {"when": value, "then": [...], "otherwise": [...]?}    {"repeat": n, "do": [...]}
    {"reset": "all" | [state names]}    {"host": step}    {"return": value}

A name means: the step's value (user inputs, outputs of earlier runs), else a state tensor with this step's pending
updates on top, else a weight.  Pending state is an overlay: whoever performs a program decides whether to keep it.
Each value is let go right after the last word that can read it, so residuals die with the run that consumes them.
A late run gives state only, which nothing later reads: it may be left to whoever commits, with the tensors it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from ttac.errors import RuntimeMissingError
from ttac.runtime.checks import MANIFEST, a_count, a_list, a_name, an_object, refuse
from ttac.runtime.host import STEPS

Tensor: TypeAlias = Any
"""A tensor on the device, as the engine holds it."""

DEEPEST = 16
"""Levels of `when` and `repeat` inside each other that a program may have."""


@dataclass(frozen=True)
class Run:
    """Run a graph: all of its outputs, or those in `only`; on the first `rows` samples if that is not 0.

    `feed` names other values for some of its inputs: input -> value.  `late`: it runs when the step is committed.
    `fetch` and `keep` are filled in by `bind`: outputs to compute, and values that later words can still read.
    """

    graph: str
    rows: int = 0
    only: tuple[str, ...] | None = None
    feed: Mapping[str, str] = field(default_factory=dict)
    late: bool = False
    fetch: tuple[str, ...] = ()
    keep: frozenset[str] = frozenset()


@dataclass(frozen=True)
class When:
    """Perform `then` if the scalar `value` is above 0, else (0, below, or not a number) `otherwise`."""

    value: str
    then: tuple[Word, ...]
    otherwise: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Repeat:
    """Perform `do` `times` times."""

    times: int
    do: tuple[Word, ...]


@dataclass(frozen=True)
class Reset:
    """Set the named state tensors to what they were when the bundle was compiled."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Host:
    """Do the named step of `ttac.runtime.host`."""

    name: str


@dataclass(frozen=True)
class Return:
    """End the program with the value."""

    name: str


Word: TypeAlias = Run | When | Repeat | Reset | Host | Return


class Graph(Protocol):
    """What a program needs of a graph; `state` and `stats` map outputs to state tensors and reported names."""

    @property
    def inputs(self) -> Collection[str]:
        """Names of the inputs."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs."""

    @property
    def state(self) -> Mapping[str, str]:
        """Output -> state tensor."""

    @property
    def stats(self) -> Mapping[str, str]:
        """Output -> reported name."""

    def run(self, feed: Mapping[str, Tensor], outputs: Sequence[str]) -> list[Tensor]:
        """The named outputs, in that order."""


class Device(Protocol):
    """What a program needs of the engine besides graphs."""

    def tensor(self, array: Any) -> Tensor:
        """`array` as a tensor."""

    def array(self, tensor: Tensor) -> Any:
        """`tensor` as an array that must not be written."""


@dataclass(frozen=True)
class World:
    """Everything a program may name; `state` is the committed one and is never changed by a step."""

    device: Device
    graphs: Mapping[str, Graph]
    inputs: frozenset[str]
    state: Mapping[str, Tensor]
    initial: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]


@dataclass
class Late:
    """A run that waits for the commit, and holds on to what it reads until it is released."""

    graph: Graph
    fetch: tuple[str, ...]
    feed: dict[str, Tensor]

    def __call__(self) -> dict[str, Tensor]:
        """The next value of each state tensor that it moves."""
        made = self.graph.run(self.feed, self.fetch)
        return {self.graph.state[name]: tensor for name, tensor in zip(self.fetch, made, strict=True)}

    def release(self) -> None:
        """Let go of what it reads; it cannot run again."""
        self.feed = {}


@dataclass
class Step:
    """One pass through a program: its values, and what it wants to change.

    Attributes:
        values: user inputs, and outputs of the graphs that ran and can still be read.
        pending: state tensors with the value they get if the step is committed.
        late: runs that give more of these, in order, and were not done yet.
        reported: scalars for `adapter.stats`.
    """

    world: World
    values: dict[str, Tensor]
    pending: dict[str, Tensor] = field(default_factory=dict)
    late: list[Late] = field(default_factory=list)
    reported: dict[str, float] = field(default_factory=dict)

    def perform(self, words: Sequence[Word]) -> Tensor | None:
        """Do the words in order; the returned value, or None if no `return` was reached."""
        for word in words:
            found = None
            if isinstance(word, Run):
                self._run(word)
            elif isinstance(word, When):
                found = self.perform(word.then if self._is_positive(word.value) else word.otherwise)
            elif isinstance(word, Repeat):
                for _ in range(word.times):
                    self.perform(word.do)
            elif isinstance(word, Reset):
                self.pending.update((name, self.world.initial[name]) for name in word.names)
            elif isinstance(word, Host):
                self._host(word)
            else:
                found = self.find(word.name)
            if found is not None:
                return found
        return None

    def find(self, name: str) -> Tensor:
        """The tensor a name means now."""
        for place in (self.values, self.pending, self.world.state, self.world.weights):
            if name in place:
                return place[name]
        raise KeyError(name)

    def _run(self, word: Run) -> None:
        graph = self.world.graphs[word.graph]
        if word.fetch:
            feed = {name: self._rows(name, word) for name in graph.inputs}
            if word.late:
                self.late.append(Late(graph, word.fetch, feed))
                self.pending = {name: value for name, value in self.pending.items() if name not in graph.state.values()}
                made = {}
            else:
                made = dict(zip(word.fetch, graph.run(feed, word.fetch), strict=True))
            del feed
            self.pending.update((graph.state[name], tensor) for name, tensor in made.items() if name in graph.state)
            self.reported.update(
                (graph.stats[name], self._scalar(tensor)) for name, tensor in made.items() if name in graph.stats
            )
            self.values.update(made)
        self.values = {name: value for name, value in self.values.items() if name in word.keep}

    def _rows(self, name: str, word: Run) -> Tensor:
        found = self.find(word.feed.get(name, name))
        if not word.rows or name not in self.world.inputs:
            return found
        device = self.world.device
        return device.tensor(device.array(found)[: word.rows])

    def _host(self, word: Host) -> None:
        step, device = STEPS[word.name], self.world.device
        made = step.run({name: device.array(self.find(name)) for name in step.reads})
        for name in step.writes:
            place = self.pending if name in self.world.state else self.values
            place[name] = device.tensor(made[name])

    def _is_positive(self, name: str) -> bool:
        return self._scalar(self.find(name)) > 0

    def _scalar(self, tensor: Tensor) -> float:
        return float(self.world.device.array(tensor).reshape(-1)[0])


def parse_program(words: Any, where: str, state: Collection[str]) -> tuple[Word, ...]:
    """The program in the JSON value `words`, which returns a value on every path.

    Raises:
        RuntimeMissingError: a word or a host step this ttac does not know.
        VerificationError: a word that is not as the module's docstring says.
    """
    program = _parse(words, where, frozenset(state), DEEPEST)
    if not _returns(program):
        refuse(where, "does not end with `return` on every path")
    return program


def graphs_of(words: Sequence[Word]) -> set[str]:
    """Names of the graphs the program runs."""
    return {word.graph for word in _all_words(words) if isinstance(word, Run)}


def hosts_of(words: Sequence[Word]) -> set[str]:
    """Names of the host steps the program does."""
    return {word.name for word in _all_words(words) if isinstance(word, Host)}


def bind(words: Sequence[Word], world: World, where: str) -> tuple[Word, ...]:
    """The program with `fetch` and `keep` of every run, after checking that each name is there when it is read.

    Raises VerificationError for a name that nothing provides.
    """
    known = set(world.inputs) | set(world.state) | set(world.weights)
    _check_names(words, world, known, where)
    _check_late(words, world, set(), where)
    return _bind(words, world, frozenset())[0]


def overwritten(words: Sequence[Word], graphs: Mapping[str, Graph]) -> set[str]:
    """Names of the state tensors that late runs move."""
    return {
        name
        for word in _all_words(words)
        if isinstance(word, Run) and word.late
        for name in graphs[word.graph].state.values()
    }


def _parse(words: Any, where: str, state: frozenset[str], depth: int) -> tuple[Word, ...]:
    if depth == 0:
        refuse(where, f"is more than {DEEPEST} levels deep")
    entries = a_list(words, where)
    parsed = tuple(_parse_word(entry, f"{where}[{number}]", state, depth) for number, entry in enumerate(entries))
    for number, word in enumerate(parsed[:-1]):
        if _returns((word,)):
            refuse(f"{where}[{number}]", "returns, so what follows is never reached")
    return parsed


def _parse_word(value: Any, where: str, state: frozenset[str], depth: int) -> Word:
    entry = an_object(value, where)
    names = [name for name in entry if name in _PARSERS]
    if len(names) != 1:
        unknown = ", ".join(f"`{key}`" for key in entry) or "none"
        raise RuntimeMissingError(
            f"this ttac knows the program words {', '.join(_PARSERS)}; found {unknown}",
            where=f"`{MANIFEST}`, `{where}`",
            hint="`pip install --upgrade ttac`, or recompile the bundle with this version",
        )
    return _PARSERS[names[0]](entry, where, state, depth)


def _parse_run(entry: dict[str, Any], where: str, state: frozenset[str], depth: int) -> Word:
    an_object(entry, where, only=("run",), also=("rows", "feed", "only", "late"))
    feed = {
        a_name(name, f"{where}.feed"): a_name(value, f"{where}.feed")
        for name, value in an_object(entry.get("feed", {}), f"{where}.feed").items()
    }
    only = None
    if "only" in entry:
        only = tuple(a_name(name, f"{where}.only") for name in a_list(entry["only"], f"{where}.only"))
    rows = a_count(entry["rows"], f"{where}.rows", low=1) if "rows" in entry else 0
    late = entry.get("late", False)
    if "late" in entry and (late is not True or only is not None):
        refuse(f"{where}.late", "is not `true`" if late is not True else "leaves out outputs by `only`")
    return Run(a_name(entry["run"], where), rows, only, feed, late)


def _parse_when(entry: dict[str, Any], where: str, state: frozenset[str], depth: int) -> Word:
    an_object(entry, where, only=("when", "then"), also=("otherwise",))
    branches = [_parse(entry.get(key, []), f"{where}.{key}", state, depth - 1) for key in ("then", "otherwise")]
    return When(a_name(entry["when"], where), *branches)


def _parse_repeat(entry: dict[str, Any], where: str, state: frozenset[str], depth: int) -> Word:
    an_object(entry, where, only=("repeat", "do"))
    body = _parse(entry["do"], f"{where}.do", state, depth - 1)
    if any(isinstance(word, Return) for word in _all_words(body)):
        refuse(f"{where}.do", "returns inside `repeat`")
    if any(isinstance(word, Run) and word.late for word in _all_words(body)):
        refuse(f"{where}.do", "has a late run inside `repeat`")
    return Repeat(a_count(entry["repeat"], where, low=1), body)


def _parse_reset(entry: dict[str, Any], where: str, state: frozenset[str], depth: int) -> Word:
    an_object(entry, where, only=("reset",))
    if entry["reset"] == "all":
        return Reset(tuple(sorted(state)))
    names = tuple(a_name(name, where) for name in a_list(entry["reset"], where))
    for name in names:
        if name not in state:
            refuse(where, f"resets `{name}`, which the state table lacks")
    return Reset(names)


def _parse_host(entry: dict[str, Any], where: str, state: frozenset[str], depth: int) -> Word:
    an_object(entry, where, only=("host",))
    name = a_name(entry["host"], where)
    if name not in STEPS:
        raise RuntimeMissingError(
            f"this ttac has no host step `{name}`",
            where=f"`{MANIFEST}`, `{where}`",
            hint="`pip install --upgrade ttac`, or recompile the bundle with this version",
        )
    return Host(name)


def _parse_return(entry: dict[str, Any], where: str, state: frozenset[str], depth: int) -> Word:
    an_object(entry, where, only=("return",))
    return Return(a_name(entry["return"], where))


_PARSERS: dict[str, Callable[[dict[str, Any], str, frozenset[str], int], Word]] = {
    "run": _parse_run,
    "when": _parse_when,
    "repeat": _parse_repeat,
    "reset": _parse_reset,
    "host": _parse_host,
    "return": _parse_return,
}


def _all_words(words: Sequence[Word]) -> Iterator[Word]:
    for word in words:
        yield word
        if isinstance(word, When):
            yield from _all_words((*word.then, *word.otherwise))
        elif isinstance(word, Repeat):
            yield from _all_words(word.do)


def _returns(words: Sequence[Word]) -> bool:
    """Whether every path through `words` ends with a `return`."""
    last = words[-1] if words else None
    if isinstance(last, When):
        return _returns(last.then) and _returns(last.otherwise)
    return isinstance(last, Return)


def _check_names(words: Sequence[Word], world: World, known: set[str], where: str) -> set[str]:
    """`known` and what the words add to it on every path."""
    for word in words:
        missing = sorted(_reads(word, world) - known)
        if missing:
            refuse(where, f"reads `{missing[0]}` in {_named(word)}, and nothing provides it")
        if isinstance(word, Run):
            outputs = world.graphs[word.graph].outputs
            _check_ports(word, world.graphs[word.graph], where)
            known = known | set(outputs if word.only is None else word.only)
        elif isinstance(word, Host):
            known = known | set(STEPS[word.name].writes)
        elif isinstance(word, Repeat):
            known = _check_names(word.do, world, known, where)
        elif isinstance(word, When):
            known = _check_names(word.then, world, known, where) & _check_names(word.otherwise, world, known, where)
    return known


def _check_late(words: Sequence[Word], world: World, closed: set[str], where: str) -> set[str]:
    """`closed`, what late runs have moved and nobody may read or move any more, and what the words add to it."""
    for word in words:
        if touched := sorted((_reads(word, world) | _moves(word, world)) & closed):
            refuse(where, f"touches `{touched[0]}` in {_named(word)}, and a late run has moved it")
        if isinstance(word, Run) and word.late:
            graph = world.graphs[word.graph]
            if other := [name for name in graph.outputs if name not in graph.state]:
                refuse(where, f"has {_named(word)} run late, and its output `{other[0]}` is no state")
            closed = closed | set(graph.outputs) | set(graph.state.values())
        elif isinstance(word, When):
            closed = _check_late(word.then, world, closed, where) | _check_late(word.otherwise, world, closed, where)
        elif isinstance(word, Repeat):
            closed = _check_late(word.do, world, closed, where)
    return closed


def _check_ports(word: Run, graph: Graph, where: str) -> None:
    for name in word.only or ():
        if name not in graph.outputs:
            refuse(where, f"wants `{name}` of {_named(word)}, which has no such output")
    for name in word.feed:
        if name not in graph.inputs:
            refuse(where, f"feeds `{name}` to {_named(word)}, which has no such input")


def _bind(words: Sequence[Word], world: World, after: Set[str]) -> tuple[tuple[Word, ...], Set[str]]:
    """The words bound, last first, and the names they read; `after` are names that something later reads.

    What a run makes again is not kept for it: residuals of an earlier run are gone when the same graph runs once more.
    """
    bound: list[Word] = []
    for word in reversed(words):
        if isinstance(word, Run):
            run = _bind_run(word, world.graphs[word.graph], after)
            bound.append(run)
            after = (after - set(run.fetch)) | _reads(word, world)
        elif isinstance(word, When):
            then, first = _bind(word.then, world, after)
            otherwise, second = _bind(word.otherwise, world, after)
            bound.append(When(word.value, then, otherwise))
            after = first | second | {word.value}
        elif isinstance(word, Repeat):
            after = after | _all_reads(word.do, world)
            bound.append(Repeat(word.times, _bind(word.do, world, after)[0]))
        else:
            bound.append(word)
            after = after | _reads(word, world)
    return tuple(reversed(bound)), after


def _bind_run(word: Run, graph: Graph, after: Set[str]) -> Run:
    read = {*after, *graph.state, *graph.stats}
    fetch = tuple(name for name in (graph.outputs if word.only is None else word.only) if name in read)
    return replace(word, fetch=fetch, keep=frozenset(after))


def _all_reads(words: Sequence[Word], world: World) -> set[str]:
    return {name for word in _all_words(words) for name in _reads(word, world)}


def _reads(word: Word, world: World) -> set[str]:
    """Names the word itself reads, not those of the words inside it."""
    if isinstance(word, Run):
        return {word.feed.get(name, name) for name in world.graphs[word.graph].inputs}
    if isinstance(word, Host):
        return set(STEPS[word.name].reads)
    if isinstance(word, When):
        return {word.value}
    return {word.name} if isinstance(word, Return) else set()


def _moves(word: Word, world: World) -> set[str]:
    """Names of the state tensors and values that the word itself makes."""
    if isinstance(word, Run):
        graph = world.graphs[word.graph]
        return {*graph.outputs, *graph.state.values()}
    if isinstance(word, Host):
        return set(STEPS[word.name].writes)
    return set(word.names) if isinstance(word, Reset) else set()


def _named(word: Word) -> str:
    if isinstance(word, Run):
        return f"graph `{word.graph}`"
    return f"`{type(word).__name__.lower()}`"
