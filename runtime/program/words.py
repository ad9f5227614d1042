"""The words of a program as records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Union


@dataclass(frozen=True)
class Run:
    """Run a graph.

    Attributes:
        graph: name of the graph.
        rows: run on the first `rows` samples of the user inputs; 0 means all samples.
        only: the outputs to compute, None for all.
        feed: graph input -> name of another value for this input.
        deferred: the run happens at the commit of the step.
        fetch: outputs to compute, filled in by `bind`.
        keep: values that later words can still read, filled in by `bind`.
    """

    graph: str
    rows: int = 0
    only: tuple[str, ...] | None = None
    feed: Mapping[str, str] = field(default_factory=dict)
    deferred: bool = False
    fetch: tuple[str, ...] = ()
    keep: frozenset[str] = frozenset()


@dataclass(frozen=True)
class When:
    """Perform `then` if the scalar `value` is above 0, else (0, negative, or not a number) `otherwise`."""

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
    """Set the named state tensors to their compiled values."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Return:
    """End the program with the values, one for each output of the model."""

    names: tuple[str, ...]


Word = Union[Run, When, Repeat, Reset, Return]


def all_words(words: Sequence[Word]) -> Iterator[Word]:
    """The words and the words inside them, in order."""
    for word in words:
        yield word
        if isinstance(word, When):
            yield from all_words((*word.then, *word.otherwise))
        elif isinstance(word, Repeat):
            yield from all_words(word.do)


def map_runs(words: Sequence[Word], change: Callable[[Run], Run]) -> tuple[Word, ...]:
    """The words with `change` applied to every run, also inside other words."""
    changed: list[Word] = []
    for word in words:
        if isinstance(word, Run):
            word = change(word)
        elif isinstance(word, When):
            word = replace(word, then=map_runs(word.then, change), otherwise=map_runs(word.otherwise, change))
        elif isinstance(word, Repeat):
            word = replace(word, do=map_runs(word.do, change))
        changed.append(word)
    return tuple(changed)


def count_words(words: Sequence[Word]) -> int:
    """Words that the program does at most, counted with their repetitions."""
    count = len(words)
    for word in words:
        if isinstance(word, When):
            count += max(count_words(word.then), count_words(word.otherwise))
        elif isinstance(word, Repeat):
            count += word.times * count_words(word.do)
    return count


def always_returns(words: Sequence[Word]) -> bool:
    """Whether every path through `words` ends with a `return`."""
    last = words[-1] if words else None
    if isinstance(last, When):
        return always_returns(last.then) and always_returns(last.otherwise)
    return isinstance(last, Return)


def graphs_of(words: Sequence[Word]) -> set[str]:
    """Names of the graphs the program runs."""
    return {word.graph for word in all_words(words) if isinstance(word, Run)}


def describe(word: Word) -> str:
    """Short text of the word for an error message, such as "graph `forward`"."""
    if isinstance(word, Run):
        return f"graph `{word.graph}`"
    return f"`{type(word).__name__.lower()}`"
