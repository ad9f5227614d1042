"""From the JSON of a program to its words."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ttac.errors import RuntimeMissingError
from ttac.runtime.json_values import MANIFEST, a_count, a_list, a_name, an_object, refuse
from ttac.runtime.program.words import Repeat, Reset, Return, Run, When, Word, all_words, always_returns, count_words

MOST_WORDS = 10_000
"""Most words that a program does, counted with their repetitions: a step of a published method does less than 1000."""

DEEPEST = 16
"""Most levels of nested `when` and `repeat` in a program."""


def parse_program(words: Any, where: str, state: Collection[str]) -> tuple[Word, ...]:
    """Return the program in the JSON value `words`; it returns a value on every path.

    Raises:
        RuntimeMissingError: this ttac does not know a word.
        VerificationError: a word does not fit the docstring of `ttac.runtime.program`.
    """
    program = _parse(words, where, frozenset(state), DEEPEST)
    if not always_returns(program):
        refuse(where, "does not end with `return` on every path")
    if (count := count_words(program)) > MOST_WORDS:
        refuse(where, f"does {count} words with all repetitions, and {MOST_WORDS} is the limit")
    return program


def _parse(words: Any, where: str, state: frozenset[str], depth: int) -> tuple[Word, ...]:
    if depth == 0:
        refuse(where, f"is more than {DEEPEST} levels deep")
    entries = a_list(words, where)
    parsed = tuple(_parse_word(entry, f"{where}[{number}]", state, depth) for number, entry in enumerate(entries))
    for number, word in enumerate(parsed[:-1]):
        if always_returns((word,)):
            refuse(f"{where}[{number}]", "returns, so the next word is never reached")
    return parsed


def _parse_word(value: Any, where: str, state: frozenset[str], depth: int) -> Word:
    entry = an_object(value, where)
    names = [name for name in entry if name in _PARSERS]
    if len(names) != 1:
        unknown = ", ".join(f"`{key}`" for key in entry) or "none"
        raise RuntimeMissingError(
            f"this ttac knows the program words {', '.join(_PARSERS)}; the manifest has {unknown}",
            where=f"`{MANIFEST}`, `{where}`",
            hint="`pip install --upgrade ttac`, or recompile the bundle with this version",
        )
    return _PARSERS[names[0]](entry, where, state, depth)


def _parse_run(entry: dict[str, Any], where: str, state: frozenset[str], depth: int) -> Word:
    an_object(entry, where, only=("run",), also=("rows", "feed", "only", "deferred"))
    feed = {
        a_name(name, f"{where}.feed"): a_name(value, f"{where}.feed")
        for name, value in an_object(entry.get("feed", {}), f"{where}.feed").items()
    }
    only = None
    if "only" in entry:
        only = tuple(a_name(name, f"{where}.only") for name in a_list(entry["only"], f"{where}.only"))
    rows = a_count(entry["rows"], f"{where}.rows", low=1) if "rows" in entry else 0
    deferred = entry.get("deferred", False)
    if "deferred" in entry and (deferred is not True or only is not None):
        refuse(f"{where}.deferred", "is not `true`" if deferred is not True else "excludes outputs by `only`")
    return Run(graph=a_name(entry["run"], where), rows=rows, only=only, feed=feed, deferred=deferred)


def _parse_when(entry: dict[str, Any], where: str, state: frozenset[str], depth: int) -> Word:
    an_object(entry, where, only=("when", "then"), also=("otherwise",))
    branches = [_parse(entry.get(key, []), f"{where}.{key}", state, depth - 1) for key in ("then", "otherwise")]
    return When(a_name(entry["when"], where), *branches)


def _parse_repeat(entry: dict[str, Any], where: str, state: frozenset[str], depth: int) -> Word:
    an_object(entry, where, only=("repeat", "do"))
    body = _parse(entry["do"], f"{where}.do", state, depth - 1)
    if any(isinstance(word, Return) for word in all_words(body)):
        refuse(f"{where}.do", "returns inside `repeat`")
    if any(isinstance(word, Run) and word.deferred for word in all_words(body)):
        refuse(f"{where}.do", "has a deferred run inside `repeat`")
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


def _parse_return(entry: dict[str, Any], where: str, state: frozenset[str], depth: int) -> Word:
    an_object(entry, where, only=("return",))
    return Return(tuple(a_name(name, where) for name in a_list(entry["return"], where)))


_PARSERS: dict[str, Callable[[dict[str, Any], str, frozenset[str], int], Word]] = {
    "run": _parse_run,
    "when": _parse_when,
    "repeat": _parse_repeat,
    "reset": _parse_reset,
    "return": _parse_return,
}
