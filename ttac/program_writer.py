"""From the program of a method, which names graphs as papers do, to the programs of a bundle, which name its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ttac.bundle_content import BundleContent

Word = Mapping[str, Any]


def programs(content: BundleContent) -> dict[str, list[Word]]:
    """The method's steps, with `logits` as the graph calls it; `predict` runs the forward alone."""
    predict: list[Word] = [{"run": "forward", "only": [content.logits]}, {"return": content.logits}]
    return {"step": spelled(content, content.state.options.method.program), "predict": predict}


def unguarded(content: BundleContent) -> dict[str, list[Word]]:
    """The same programs with every `when` taken: what a step needs at most, whatever the data."""
    found = programs(content)
    return {**found, "step": _taken(found["step"])}


def runs_again(words: Sequence[Word]) -> bool:
    """Whether a graph runs a second time in one step, without what the first run already gave."""
    inner = [word[key] for word in words for key in ("then", "otherwise", "do") if key in word]
    return any(word.get("again") for word in words) or any(runs_again(branch) for branch in inner)


def spelled(content: BundleContent, words: Sequence[Word]) -> list[Word]:
    """Words of a method as words of a bundle (see `ttac.spec.Method.program`)."""
    found: list[Word] = []
    for word in words:
        if "run" in word:
            found += _runs(content, word)
        elif "when" in word:
            branches = {key: spelled(content, word[key]) for key in ("then", "otherwise") if key in word}
            found.append({"when": word["when"], **branches})
        elif "reset" in word and word["reset"] != "all":
            found.append({"reset": [tensor.name for tensor in content.tensors if tensor.role in word["reset"]]})
        elif word == {"return": "logits"}:
            found.append({"return": content.logits})
        else:
            found.append(word)
    return found


def _runs(content: BundleContent, word: Word) -> list[Word]:
    names = content.stages(word["run"])
    if not word.get("again"):
        return [{"run": name, **_how(content, word, name)} for name in names]
    found: list[Word] = []
    for name in names:
        first = {content.logits, *content.moves.get(name, {}), *content.stats.get(name, {})}
        outputs = [str(value.name) for value in content.graphs[name].graph.outputs]
        found.append({"run": name, **_how(content, word, name), "only": [o for o in outputs if o not in first]})
    return found


def _how(content: BundleContent, word: Word, graph: str) -> Word:
    """`{"rows": k}` for a run on the first k samples, as many as the setting that the word names says.

    `{"feed": {input: value}}` for one that takes the value for the model's input, where the graph reads that;
    `{"deferred": True}` for further graphs of a step that moves state.
    """
    rows = {"rows": int(content.state.options.settings[word["rows"]])} if "rows" in word else {}
    x = str(content.graphs["infer"].graph.inputs[0].name)
    reads = any(value.name == x for value in content.graphs[graph].graph.inputs)
    fed = {"feed": {x: word["on"]}} if "on" in word and reads else {}
    deferred = {"deferred": True} if graph != word["run"] and _only_moves(content, graph) else {}
    return {**rows, **fed, **deferred}


def _only_moves(content: BundleContent, graph: str) -> bool:
    """Whether all outputs of the graph are state: no other word of the step waits for it."""
    return {str(value.name) for value in content.graphs[graph].graph.outputs} == set(content.moves.get(graph, {}))


def _taken(words: Sequence[Word]) -> list[Word]:
    found: list[Word] = []
    for word in words:
        found += _taken(word["then"]) if "when" in word else [word]
    return found
