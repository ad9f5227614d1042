"""From the program of a method, in the words of papers, to the programs of a bundle, in the names of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ttac.bundle_content import BundleContent
from ttac.check_samples import moved_apart, of_norms
from ttac.errors import UnsupportedError
from ttac.passes.graph.state import StateTensor
from ttac.passes.step_graphs.check_set import CHECK, FAILED, KEPT, LEFT, RETURN, SAMPLES, sample
from ttac.passes.step_graphs.error_estimate import CHANGED, ENTROPY, ESTIMATE
from ttac.passes.step_graphs.guard import (
    FOLLOWS,
    GUARD,
    HOLD,
    IS_EARLY,
    IS_HELD,
    LEARN,
    MARK,
    RESET,
    TOTALS,
    kept_by,
)
from ttac.passes.step_graphs.prior_correction import CORRECT, CORRECTED
from ttac.passes.step_graphs.window import FULL, PREDICT, WINDOW, kept, predicted, windowed
from ttac.spec import SOURCE_SET, Word, map_words, walk

FORWARD = "forward"
STATISTICS = "statistics."
"""First part of the names of the counters of statistics."""


def programs(content: BundleContent) -> dict[str, list[Word]]:
    """The programs `step`, by the method, and `predict`, which runs the forward alone; for the manifest."""
    predict = _predict(content)
    step = spelled(content, with_correction(content, _present(content)))
    step = with_guard(content, step) if HOLD in content.graphs else [_unmarked(word) for word in step]
    step = with_estimate(step) if ESTIMATE in content.graphs else step
    return _windowed(content, step) if WINDOW in content.graphs else {"step": step, "predict": predict}


def _present(content: BundleContent) -> list[Word]:
    """The method's program without runs of its own graphs that have nothing to do on this model."""
    method = content.state.options.method
    absent = method.graphs.keys() - content.graphs.keys()
    return map_words(method.program, lambda word: [] if word.get("run") in absent else [word])


def _predict(content: BundleContent) -> list[Word]:
    """The words of a prediction that changes no state."""
    graph = PREDICT if PREDICT in content.graphs else "forward"
    chosen = _feed(content, {"set": content.state.options.method.predicts}, graph)
    if graph == PREDICT:
        names = [predicted(name) for name in content.outputs]
        only = {"only": names} if len(content.graphs[PREDICT].graph.outputs) > len(names) else {}
        return [{"run": PREDICT, **chosen, **only}, {"return": names}]
    return [{"run": "forward", **chosen, "only": content.outputs}, {"return": content.outputs}]


def _windowed(content: BundleContent, step: Sequence[Word]) -> dict[str, list[Word]]:
    """The programs with a window: each step predicts its samples, and a full window does the words of `step`."""
    feed = {str(x.name): kept(str(x.name)) for x in windowed(content.inputs)}
    adapt = map_words(step[:-1], lambda word: [_on_window(content, word, feed)])
    predict = _predict(content)
    return {"step": [{"run": WINDOW}, predict[0], {"when": FULL, "then": adapt}, predict[1]], "predict": predict}


def _on_window(content: BundleContent, word: Word, feed: Mapping[str, str]) -> Word:
    """The word; a run reads the window in place of the user's samples."""
    if "run" not in word:
        return word
    read = {str(value.name) for value in content.graphs[word["run"]].graph.inputs}
    fed = {**{name: value for name, value in feed.items() if name in read}, **word.get("feed", {})}
    return {**word, "feed": fed} if fed else word


def with_correction(content: BundleContent, words: Sequence[Word]) -> Sequence[Word]:
    """The words of a step that returns corrected scores, if the bundle has the graph of the correction.

    The correction comes behind the last run of the forward, or of the graph that gives the method's own answer.
    """
    if CORRECT not in content.graphs:
        return words
    own = "" if words[-1]["return"] == "logits" else words[-1]["return"]
    given = max(
        number
        for number, word in enumerate(words)
        if (own in _outputs(content, word) if own else word.get("run") == "forward" and not word.get("again"))
    )
    return [*words[: given + 1], {"run": CORRECT}, *words[given + 1 : -1], {"return": CORRECTED}]


def with_guard(content: BundleContent, words: Sequence[Word]) -> list[Word]:
    """The words of a step, of which those between the prediction and the return happen only if the guard allows it.

    If the guard calls for a reset, all state but the counters of the guard gets its compiled value instead.
    """
    returned = set(words[-1]["return"])
    last = max(
        number
        for number, word in enumerate(words)
        if (word.get("run") == "forward" and "only" not in word) or returned & _outputs(content, word)
    )
    rest, apart = words[last + 1 : -1], [{"run": GUARD}] if GUARD in content.graphs else []
    following = [_unmarked(word) for word in rest if word.get(MARK)]
    follow: list[Word] = [{"when": FOLLOWS, "then": following}] if following else []
    learning = [word for word in rest if not word.get(MARK)]
    return [*_checked(content), *words[: last + 1], *apart, *follow, *_guarded(content, learning), words[-1]]


def _guarded(content: BundleContent, learning: Sequence[Word]) -> list[Word]:
    """The words of a held batch, or else those of `learning`, where the step does not check."""
    outputs = {str(value.name) for value in content.graphs[judge(content)].graph.outputs}
    compiled = [tensor.name for tensor in content.tensors if tensor.name not in (*TOTALS, *KEPT)]
    holding = [{"run": HOLD}, *_forgotten(content), {"when": RESET, "then": [{"reset": compiled}]}]
    free: Sequence[Word] = [{"when": LEARN, "then": learning}] if learning and LEARN in outputs else learning
    word: Word = {"when": IS_HELD, "then": holding, **({"otherwise": free} if free else {})}
    return [{"when": IS_EARLY, "then": [word], "otherwise": holding} if IS_EARLY in outputs else word]


def judge(content: BundleContent) -> str:
    """Name of the graph that judges the batch: the forward, or the graph of the guard where that stays apart."""
    return GUARD if GUARD in content.graphs else FORWARD


def runs_forward_once(words: Sequence[Word]) -> bool:
    """Whether a step gives all outputs of the forward once, on the user's samples and with the step's own state."""
    runs = [word for word in walk(words) if word.get("run") == FORWARD and not {"again", "only"} & word.keys()]
    return len(runs) == 1 and set(runs[0]) == {"run"} and runs[0] in list(words)


def _unmarked(word: Word) -> Word:
    """The word without the mark that only `with_guard` reads."""
    return {key: value for key, value in word.items() if key != MARK}


def _checked(content: BundleContent) -> list[Word]:
    """The words that judge the state by a batch of the check set, and turn back from a state that fails.

    They come first: later words overwrite the predictions.  Norms take the compiled statistics, since those of the
    stream's domain say little about the source's samples.
    """
    if CHECK not in content.graphs:
        return []
    predicts = _feed(content, {"set": content.state.options.method.predicts}, "forward").get("feed", {})
    given = {name: sample(name) for name in _inputs(content, "forward") if name in content.state.inputs}
    feed = {**predicts, **given, **{tensor: f"{SOURCE_SET}.{tensor}" for tensor in norm_statistics(content)}}
    forgotten = [tensor for tensor in content.tensors if not tensor.name.startswith((f"{GUARD}.", f"{WINDOW}."))]
    norms = {tensor.name for tensor in of_norms(content.state)} - {tensor.name for tensor in moved_apart(content.state)}
    returned = {tensor.name for tensor in content.joint.parameters} if RETURN in content.graphs else set[str]()
    names = [tensor.name for tensor in forgotten if tensor.name not in norms | returned]
    back: list[Word] = [{"run": RETURN}] if returned else []
    turn_back: Word = {"when": FAILED, "then": [*back, *([{"reset": names}] if names else [])]}
    run: Word = {"run": "forward", "feed": feed, "only": [content.logits]}
    return [{"when": LEFT, "then": [], "otherwise": [{"run": SAMPLES}, run, {"run": CHECK}, turn_back]}]


def norm_statistics(content: BundleContent) -> list[str]:
    """Names of the statistics of norms that predictions depend on, which a check replaces by the compiled ones."""
    moved = kept_by(content.moves.get(judge(content), {}))
    moved |= {tensor.name for tensor in moved_apart(content.state)}
    names = [tensor.name for tensor in of_norms(content.state) if tensor.name in moved]
    return [name for name in names if CHECK in content.graphs and name in _inputs(content, "forward")]


def _inputs(content: BundleContent, graph: str) -> set[str]:
    return {str(value.name) for value in content.graphs[graph].graph.inputs}


def with_estimate(words: Sequence[Word]) -> list[Word]:
    """The words of a step that estimates the error behind the run of the forward that counts changed classes.

    Raises UnsupportedError for a method that runs the forward only under a condition, or only for other values.
    """
    runs = [number for number, word in enumerate(words) if word.get("run") == "forward"]
    counted = next((number for number in runs if CHANGED in words[number].get("only", [CHANGED])), None)
    if counted is None:
        raise UnsupportedError(
            "the method has no plain run of the forward in every step, which the estimate needs",
            where="`--set estimate`",
            hint="leave the setting out",
        )
    return [*words[: counted + 1], {"run": ESTIMATE}, *words[counted + 1 :]]


def _forgotten(content: BundleContent) -> list[Word]:
    """The word that forgets the statistics of a held window, from which the next samples would be predicted."""
    names = [tensor.name for tensor in content.tensors if tensor.name.startswith(STATISTICS)]
    names += [tensor.name for tensor in content.tensors if tensor.role == "statistic"]
    return [{"reset": names}] if WINDOW in content.graphs and names else []


def _outputs(content: BundleContent, word: Word) -> set[str]:
    """Names of the values that the run of the word gives; none of a word that runs no graph."""
    if "run" not in word:
        return set()
    graphs = [content.graphs[name].graph for name in content.stages(word["run"])]
    return set(word.get("only", (str(value.name) for graph in graphs for value in graph.outputs)))


def unguarded(content: BundleContent) -> dict[str, list[Word]]:
    """The same programs with every branch `then` taken but that of held batches: no data makes a step need more memory.

    The forward of a check gives the logits alone, for no more samples than a step.  In the warm-up of a measurement,
    with fewer samples, the check would fill the engine's arena before the measurement begins.
    """
    guarded = programs(content)
    return {**guarded, "step": map_words(guarded["step"], _taken)}


def runs_again(words: Sequence[Word]) -> bool:
    """Whether a graph runs a second time in one step, without the outputs that the first run gave."""
    return any(word.get("again") for word in walk(words))


def source_set(words: Sequence[Word], tensors: Sequence[StateTensor]) -> dict[str, np.ndarray]:
    """The compiled values of the trained `tensors` as weights `source.<parameter>`; empty if no run reads them."""
    read = any(word.get("set") == SOURCE_SET for word in walk(words))
    return {f"{SOURCE_SET}.{tensor.name}": tensor.initial for tensor in tensors} if read else {}


def spelled(content: BundleContent, words: Sequence[Word]) -> list[Word]:
    """Words of a method as words of a bundle (see `ttac.spec.Method.program`)."""
    return map_words(words, lambda word: _spelled(content, word))


def _spelled(content: BundleContent, word: Word) -> list[Word]:
    """The words of a bundle for one word of a method; the words inside it stay."""
    if "run" in word:
        return _runs(content, word)
    if "repeat" in word:
        return [{**word, "repeat": _count(content, word["repeat"])}]
    if "reset" in word and word["reset"] != "all":
        others = [tensor for tensor in content.tensors if not tensor.name.startswith(f"{GUARD}.")]
        return [{"reset": [tensor.name for tensor in others if tensor.role in word["reset"]]}]
    if isinstance(word.get("return"), str):
        predicted = content.output if word["return"] == "logits" else word["return"]
        return [{"return": [predicted if name == content.output else name for name in content.outputs]}]
    return [word]


def _runs(content: BundleContent, word: Word) -> list[Word]:
    names = content.stages(word["run"])
    if not word.get("again"):
        return [{"run": name, **_conditions(content, word, name)} for name in names]
    runs: list[Word] = []
    for name in names:
        moves = {*content.moves.get(name, {}), *(_tracked(content) if name == FORWARD else ())}
        first = {*content.outputs, *moves, *content.stats.get(name, {}), LEARN, FOLLOWS, CHANGED, ENTROPY}
        outputs = [str(value.name) for value in content.graphs[name].graph.outputs]
        runs.append({"run": name, **_conditions(content, word, name), "only": [o for o in outputs if o not in first]})
    return runs


def _tracked(content: BundleContent) -> set[str]:
    """The outputs of the forward with next values of running averages, but for those that the method's graphs move."""
    own = content.state.options.method.graphs
    elsewhere = {tensor for name in own for tensor in content.moves.get(name, {}).values()}
    return {output for output, tensor in content.state.adaptation.moves.items() if tensor not in elsewhere}


def _conditions(content: BundleContent, word: Word, graph: str) -> Word:
    """The conditions of a run: `rows`, `feed`, `only` and `deferred`.

    `{"rows": k}` runs on the first k samples; the word names the setting with k.  `{"only": "outputs"}` computes the
    outputs of the model alone.  `{"deferred": True}` marks further graphs of a word that only move state.
    """
    only = {"only": content.outputs} if word.get("only") == "outputs" else {}
    rows = {"rows": _count(content, word["rows"])} if "rows" in word else {}
    deferred = {"deferred": True} if graph != word["run"] and _only_moves(content, graph) else {}
    return {**rows, **_feed(content, word, graph), **only, **deferred}


def _count(content: BundleContent, count: int | str) -> int:
    """The count, or the setting of that name."""
    return int(content.state.options.settings[count]) if isinstance(count, str) else count


def _feed(content: BundleContent, word: Word, graph: str) -> Word:
    """`{"feed": {input: value}}` of a run: a view in place of the model's input, a set in place of the parameters."""
    read = {str(value.name) for value in content.graphs[graph].graph.inputs}
    feed = dict(word.get("feed", {}))
    if "on" in word:
        feed[content.state.inputs[0]] = word["on"]
    if word.get("set"):
        own = {tensor.name for tensor in content.tensors}
        sets = {tensor.name: f"{word['set']}.{tensor.name}" for tensor in content.state.adaptation.tracked}
        feed |= {name: other for name, other in sets.items() if other in own}
        feed |= {tensor.name: f"{word['set']}.{tensor.name}" for tensor in content.joint.parameters}
    feed = {name: value for name, value in feed.items() if name in read}
    return {"feed": feed} if feed else {}


def _only_moves(content: BundleContent, graph: str) -> bool:
    """Whether all outputs of the graph are state, so that no other word of the step reads them."""
    return {str(value.name) for value in content.graphs[graph].graph.outputs} == set(content.moves.get(graph, {}))


def _taken(word: Word) -> Sequence[Word]:
    """The words of the branch `then`, or of `otherwise` for held batches; a repetition at most twice."""
    if "when" in word:
        branch: Sequence[Word] = word.get("otherwise", []) if word["when"] == IS_HELD else word["then"]
        return branch
    return [{**word, "repeat": min(word["repeat"], 2)} if "repeat" in word else word]
