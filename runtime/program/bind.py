"""A program bound to its graphs: every name is checked, and every run knows its outputs and the values to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from ttac.runtime.json_values import refuse
from ttac.runtime.program.words import Repeat, Reset, Return, Run, When, Word, all_words, describe
from ttac.runtime.program.world import Graph, World


def bind(words: Sequence[Word], world: World, where: str) -> tuple[Word, ...]:
    """Return the program with `fetch` and `keep` of every run.

    Raises VerificationError for a name that no word, state tensor or weight provides.
    """
    known = set(world.inputs) | set(world.state) | set(world.weights)
    _check_names(words, world, known, where)
    _check_deferred(words, world, set(), where)
    return _bind(words, world, frozenset())[0]


def overwritten(words: Sequence[Word], updates: Mapping[str, Mapping[str, str]]) -> set[str]:
    """Names of the state tensors that deferred runs update; `updates` has graph -> output -> state tensor."""
    return {
        name
        for word in all_words(words)
        if isinstance(word, Run) and word.deferred
        for name in updates[word.graph].values()
    }


def _check_names(words: Sequence[Word], world: World, known: set[str], where: str) -> set[str]:
    """`known` and the names that the words add to it on every path."""
    for word in words:
        missing = sorted(_reads(word, world) - known)
        if missing:
            refuse(where, f"reads `{missing[0]}` in {describe(word)}, and nothing provides it")
        if isinstance(word, Run):
            outputs = world.graphs[word.graph].outputs
            _check_ports(word, world.graphs[word.graph], where)
            known = known | set(outputs if word.only is None else word.only)
        elif isinstance(word, Repeat):
            known = _check_names(word.do, world, known, where)
        elif isinstance(word, When):
            known = _check_names(word.then, world, known, where) & _check_names(word.otherwise, world, known, where)
    return known


def _check_deferred(words: Sequence[Word], world: World, closed: set[str], where: str) -> set[str]:
    """`closed` and the names that the words add to it.

    Closed are the names that deferred runs update; no later word may read or write them.
    """
    for word in words:
        if touched := sorted((_reads(word, world) | _writes(word, world)) & closed):
            refuse(where, f"touches `{touched[0]}` in {describe(word)}, and a deferred run updates it")
        if isinstance(word, Run) and word.deferred:
            graph = world.graphs[word.graph]
            if other := [name for name in graph.outputs if name not in graph.state]:
                refuse(where, f"defers {describe(word)}, and its output `{other[0]}` is no state")
            closed = closed | set(graph.outputs) | set(graph.state.values())
        elif isinstance(word, When):
            branches = (word.then, word.otherwise)
            closed = set().union(*(_check_deferred(branch, world, closed, where) for branch in branches))
        elif isinstance(word, Repeat):
            closed = _check_deferred(word.do, world, closed, where)
    return closed


def _check_ports(word: Run, graph: Graph, where: str) -> None:
    for name in word.only or ():
        if name not in graph.outputs:
            refuse(where, f"wants `{name}` of {describe(word)}, which has no such output")
    for name in word.feed:
        if name not in graph.inputs:
            refuse(where, f"feeds `{name}` to {describe(word)}, which has no such input")


def _bind(words: Sequence[Word], world: World, after: Set[str]) -> tuple[tuple[Word, ...], Set[str]]:
    """The words bound, last first, and the names they read; `after` are the names that later words read.

    A run does not keep the values that it computes again.  So residuals of an earlier run of a graph are freed before
    the graph runs once more.
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
    return {name for word in all_words(words) for name in _reads(word, world)}


def _reads(word: Word, world: World) -> set[str]:
    """Names the word itself reads, without the words inside it."""
    if isinstance(word, Run):
        return {word.feed.get(name, name) for name in world.graphs[word.graph].inputs}
    if isinstance(word, When):
        return {word.value}
    return set(word.names) if isinstance(word, Return) else set()


def _writes(word: Word, world: World) -> set[str]:
    """Names of the state tensors and values that the word itself writes."""
    if isinstance(word, Run):
        graph = world.graphs[word.graph]
        return {*graph.outputs, *graph.state.values()}
    return set(word.names) if isinstance(word, Reset) else set()
