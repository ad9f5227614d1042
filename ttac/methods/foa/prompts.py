"""Prompt tokens in the graph of a vision transformer, the fitness of a batch, and the shift of its features.

Niu et al., "Test-time model adaptation with only forward passes", ICML 2024 (arXiv:2404.01650).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.adapt.adapt_norms import batch_size
from ttac.passes.differentiate.losses import entropies, total
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.lengthen import lengthen
from ttac.passes.graph.rewire import nodes_before
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.answer import in_output_form, refuse_other_answers
from ttac.passes.step_graphs.class_token import (
    ClassToken,
    SourceFeatures,
    find_class_token,
    moments,
    source_features,
    squared_distance,
)
from ttac.passes.step_graphs.context import Subject
from ttac.passes.step_graphs.linear_head import replace_output

ROOM = "refine"
PROMPTS, CENTRE, SEEN = "prompts", "stream.centre", "stream.seen"
FITNESS, SCORES, MEAN = "fitness", "shifted.scores", "features.mean"
"""Outputs of the forward: the fitness of the prompts, a scalar; the shifted scores; the mean of the features [D]."""
PUBLISHED, BATCH, FEATURES, CLASSES = 0.4, 64, 12 * 768, 1000
"""Published weight of the distance from the source, and the batch, features and classes that it was published for."""
PURPOSE = "prompt tokens stand beside the class token of a vision transformer"
OTHERS = (
    "other methods without a gradient: `--method neo`, `t3a`; with batch norms `bn`; `ttac inspect` lists all that fit"
)


def check(subject: Subject) -> None:
    """Raise UnsupportedError for single samples, whose features have no deviation, and for other outputs."""
    refuse_other_answers(subject, "`foa` measures the entropy of one class")
    if subject.batch == 1:
        raise UnsupportedError(
            "the fitness compares statistics of a batch, and one sample has none",
            where="`--batch 1`",
            hint="take a batch, `--batch 16`; for single samples `--method foa-i`",
        )


def with_prompts(subject: Subject) -> list[StateTensor]:
    """Put prompt tokens behind the class token, and shift the features before the classifier, in place.

    The forward also gives `fitness`, `shifted.scores` and `features.mean`.  Other graphs move the returned state.

    Raises UnsupportedError for a model without a class token, UsageError without calibration samples.
    """
    graph, settings = subject.model.graph, subject.settings
    op = Builder(graph, ROOM, subject.model.opset_imports[""])
    size = batch_size(op, graph)
    with op.at("prompts"):
        token = find_class_token(op, subject, PURPOSE, OTHERS)
        source = source_features(subject, token.layers)
        state = _state(graph, token, settings)
        insert_prompts(op, token.tokens, state[PROMPTS].value)
        mean, deviation = moments(op, token.layers, size)
        _fitness(op, subject, token, source, (mean, deviation), size)
        graph.outputs.append(op.Slice(mean, [-token.width], [len(source.mean)], [0], name=MEAN))
        wanted = op.constant(source.mean[-token.width :])
        apart = op.Mul(op.Sub(wanted, state[CENTRE].value), state[SEEN].value)
        shifted = op.Add(token.layers[-1], op.Mul(apart, float(settings["shift"])))
        scores = token.classified(op, shifted)
        scores.name = SCORES
        assert subject.head is not None
        replace_output(subject, in_output_form(op, scores, subject.head))
    graph.outputs.append(scores)
    return list(state.values())


def insert_prompts(op: Builder, tokens: ir.Value, prompts: ir.Value) -> None:
    """Put `prompts` [1, prompts, D] behind the first of the `tokens` of each sample, for all their readers."""
    maker = tokens.producer()
    first = next(node for node in op.graph if tokens in node.inputs)
    assert maker is not None
    with op.at("prompts", before=first):
        head, rest = op.Slice(tokens, [0], [1], [1]), op.Slice(tokens, [1], [int(dims(tokens)[1])], [1])
        count = op.Shape(tokens, start=0, end=1)
        every = op.Expand(prompts, op.Concat(count, np.array([1, 1], np.int64), axis=0))
        every.shape = ir.Shape([dims(tokens)[0], *dims(prompts)[1:]])
        longer = op.Concat(head, every, rest, axis=1)
    lengthen(op, tokens, longer, 1)


def _state(graph: ir.Graph, token: ClassToken, settings: Mapping[str, int]) -> dict[str, StateTensor]:
    """The best prompts so far, the mean of the stream's features, and 1 if that mean is known."""
    fan_in = patch_size(token) + token.width
    bound = math.sqrt(6 / fan_in)
    random = np.random.RandomState(int(settings["seed"]))
    shape = (1, int(settings["prompts"]), token.width)
    initial = {
        PROMPTS: ("parameter", random.uniform(-bound, bound, shape).astype(np.float32)),
        CENTRE: ("statistic", np.zeros(token.width, np.float32)),
        SEEN: ("counter", np.zeros((), np.float32)),
    }
    return {
        name: StateTensor(name=name, role=role, initial=array, value=state_input(graph, name, array))
        for name, (role, array) in initial.items()
    }


def patch_size(token: ClassToken) -> int:
    """The number of values in a patch, by the filter of the convolution that makes the tokens; D without one."""
    for node in nodes_before(token.tokens):
        if node.op_type == "Conv":
            return math.prod(int(size) for size in dims(node.inputs[1])[1:])
    return token.width


def _fitness(
    op: Builder,
    subject: Subject,
    token: ClassToken,
    source: SourceFeatures,
    found: tuple[ir.Value, ir.Value],
    size: ir.Value,
) -> None:
    """Add the output `fitness`: sum_i H_i + w * N/64 * (sum (mean - mean_S)^2 + sum (std - std_S)^2).

    The sums go over all layers and features; the scores of the entropy are those without the shift.  The default of w
    keeps the published balance: it grows with ln(classes) and falls with the number of features.
    """
    assert subject.head is not None
    balanced = PUBLISHED * FEATURES / len(source.mean) * math.log(subject.head.classes) / math.log(CLASSES)
    chosen = float(subject.settings["discrepancy"]) or balanced
    entropy = total(op, entropies(op, token.scores, subject.head, "fitness.entropies"))
    apart = op.Add(squared_distance(op, found[0], source.mean), squared_distance(op, found[1], source.deviation))
    weight = op.Mul(size, chosen / BATCH)
    op.graph.outputs.append(op.Add(entropy, op.Mul(apart, weight), name=FITNESS))


def first_prompts(subject: Subject) -> dict[str, np.ndarray]:
    """The first value of each state tensor that the forward reads."""
    return {tensor.name: tensor.initial for tensor in subject.adaptation.parameters}
