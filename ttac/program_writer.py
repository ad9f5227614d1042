"""From the program of a method, which names graphs as papers do, to the programs of a bundle, which name its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttac.bundle_writer import Compiled

Word = Mapping[str, Any]


def programs(compiled: Compiled) -> dict[str, list[Word]]:
    """The method's steps, with `logits` as the graph calls it; `predict` runs the forward alone."""
    predict: list[Word] = [{"run": "forward", "only": [compiled.logits]}, {"return": compiled.logits}]
    return {"step": spelled(compiled, compiled.request.method.program), "predict": predict}


def unguarded(compiled: Compiled) -> dict[str, list[Word]]:
    """The same programs with every `when` taken: what a step needs at most, whatever the data."""
    found = programs(compiled)
    return {**found, "step": _taken(found["step"])}


def stages_of(compiled: Compiled, graph: str) -> list[str]:
    """The files that make up one graph of a method's program, in order: `backward-1`, `backward-2`, ..."""
    return [name for name in compiled.graphs if name == graph or name.startswith(f"{graph}-")]


def runs_again(words: Sequence[Word]) -> bool:
    """Whether a graph runs a second time in one step, without what the first run already gave."""
    inner = [word[key] for word in words for key in ("then", "otherwise", "do") if key in word]
    return any(word.get("again") for word in words) or any(runs_again(branch) for branch in inner)


def spelled(compiled: Compiled, words: Sequence[Word]) -> list[Word]:
    """Words of a method as words of a bundle (see `ttac.spec.Method.program`)."""
    found: list[Word] = []
    for word in words:
        if "run" in word:
            found += _runs(compiled, word)
        elif "when" in word:
            branches = {key: spelled(compiled, word[key]) for key in ("then", "otherwise") if key in word}
            found.append({"when": word["when"], **branches})
        elif "reset" in word and word["reset"] != "all":
            found.append({"reset": [tensor.name for tensor in compiled.state if tensor.role in word["reset"]]})
        elif word == {"return": "logits"}:
            found.append({"return": compiled.logits})
        else:
            found.append(word)
    return found


def _runs(compiled: Compiled, word: Word) -> list[Word]:
    names = stages_of(compiled, word["run"])
    if not word.get("again"):
        return [{"run": name, **_how(compiled, word, name)} for name in names]
    found: list[Word] = []
    for name in names:
        first = {compiled.logits, *compiled.moves.get(name, {}), *compiled.stats.get(name, {})}
        outputs = [str(value.name) for value in compiled.graphs[name].graph.outputs]
        found.append({"run": name, **_how(compiled, word, name), "only": [o for o in outputs if o not in first]})
    return found


def _how(compiled: Compiled, word: Word, graph: str) -> Word:
    """`{"rows": k}` for a run on the first k samples, as many as the setting that the word names says.

    `{"feed": {input: value}}` for one that takes the value for the model's input, where the graph reads that;
    `{"deferred": True}` for further graphs of a step that moves state.
    """
    rows = {"rows": int(compiled.request.settings[word["rows"]])} if "rows" in word else {}
    x = str(compiled.graphs["infer"].graph.inputs[0].name)
    reads = any(value.name == x for value in compiled.graphs[graph].graph.inputs)
    fed = {"feed": {x: word["on"]}} if "on" in word and reads else {}
    deferred = {"deferred": True} if graph != word["run"] and _only_moves(compiled, graph) else {}
    return {**rows, **fed, **deferred}


def _only_moves(compiled: Compiled, graph: str) -> bool:
    """Whether all outputs of the graph are state: no other word of the step waits for it."""
    return {str(value.name) for value in compiled.graphs[graph].graph.outputs} == set(compiled.moves.get(graph, {}))


def _taken(words: Sequence[Word]) -> list[Word]:
    found: list[Word] = []
    for word in words:
        found += _taken(word["then"]) if "when" in word else [word]
    return found
