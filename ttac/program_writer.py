"""From the program of a method, in the words of papers, to the programs of a bundle, in the names of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ttac.bundle_content import BundleContent
from ttac.passes.step_graphs.guard import GUARD, LEARN, RESET, TOTALS

Word = Mapping[str, Any]


def programs(content: BundleContent) -> dict[str, list[Word]]:
    """The programs `step`, by the method, and `predict`, which runs the forward alone; for the manifest."""
    predict: list[Word] = [{"run": "forward", "only": content.outputs}, {"return": content.outputs}]
    step = spelled(content, content.state.options.method.program)
    return {"step": with_guard(content, step) if GUARD in content.graphs else step, "predict": predict}


def with_guard(content: BundleContent, words: Sequence[Word]) -> list[Word]:
    """The words of a step, of which those between the prediction and the return happen only if the guard allows it.

    If the guard calls for a reset, all state but the counters of the guard gets its compiled value instead.
    """
    predicted = max(number for number, word in enumerate(words) if word.get("run") == "forward" and "only" not in word)
    compiled = [tensor.name for tensor in content.tensors if tensor.name not in TOTALS]
    guarded: Word = {
        "when": LEARN,
        "then": list(words[predicted + 1 : -1]),
        "otherwise": [{"when": RESET, "then": [{"reset": compiled}]}],
    }
    return [*words[: predicted + 1], {"run": GUARD}, guarded, words[-1]]


def unguarded(content: BundleContent) -> dict[str, list[Word]]:
    """The same programs with every branch `then` taken: no data makes a step need more memory."""
    guarded = programs(content)
    return {**guarded, "step": _taken(guarded["step"])}


def runs_again(words: Sequence[Word]) -> bool:
    """Whether a graph runs a second time in one step, without the outputs that the first run gave."""
    inner = [word[key] for word in words for key in ("then", "otherwise", "do") if key in word]
    return any(word.get("again") for word in words) or any(runs_again(branch) for branch in inner)


def spelled(content: BundleContent, words: Sequence[Word]) -> list[Word]:
    """Words of a method as words of a bundle (see `ttac.spec.Method.program`)."""
    words_of_bundle: list[Word] = []
    for word in words:
        if "run" in word:
            words_of_bundle += _runs(content, word)
        elif "when" in word:
            branches = {key: spelled(content, word[key]) for key in ("then", "otherwise") if key in word}
            words_of_bundle.append({"when": word["when"], **branches})
        elif "reset" in word and word["reset"] != "all":
            others = [tensor for tensor in content.tensors if not tensor.name.startswith(f"{GUARD}.")]
            names = [tensor.name for tensor in others if tensor.role in word["reset"]]
            words_of_bundle.append({"reset": names})
        elif word == {"return": "logits"}:
            words_of_bundle.append({"return": content.outputs})
        else:
            words_of_bundle.append(word)
    return words_of_bundle


def _runs(content: BundleContent, word: Word) -> list[Word]:
    names = content.stages(word["run"])
    if not word.get("again"):
        return [{"run": name, **_conditions(content, word, name)} for name in names]
    runs: list[Word] = []
    for name in names:
        first = {*content.outputs, *content.moves.get(name, {}), *content.stats.get(name, {})}
        outputs = [str(value.name) for value in content.graphs[name].graph.outputs]
        runs.append({"run": name, **_conditions(content, word, name), "only": [o for o in outputs if o not in first]})
    return runs


def _conditions(content: BundleContent, word: Word, graph: str) -> Word:
    """The conditions of a run: `rows`, `feed` and `deferred`.

    `{"rows": k}` runs on the first k samples; the word names the setting with k.  `{"feed": {input: value}}` reads the
    value in place of the model's input, if the graph reads that input.  `{"deferred": True}` marks further graphs of a
    word that only move state.
    """
    rows = {"rows": int(content.state.options.settings[word["rows"]])} if "rows" in word else {}
    x = content.state.inputs[0]
    reads = any(value.name == x for value in content.graphs[graph].graph.inputs)
    reads_view = {"feed": {x: word["on"]}} if "on" in word and reads else {}
    deferred = {"deferred": True} if graph != word["run"] and _only_moves(content, graph) else {}
    return {**rows, **reads_view, **deferred}


def _only_moves(content: BundleContent, graph: str) -> bool:
    """Whether all outputs of the graph are state, so that no other word of the step reads them."""
    return {str(value.name) for value in content.graphs[graph].graph.outputs} == set(content.moves.get(graph, {}))


def _taken(words: Sequence[Word]) -> list[Word]:
    return [inner for word in words for inner in (_taken(word["then"]) if "when" in word else [word])]
