"""Options of entropy methods that need classes which exclude each other: balanced classes, and a conservative loss.

`balance` is the dynamic online re-weighting of Zhao et al., "DELTA: degradation-free fully test-time adaptation", ICLR
2023.  `come` is the loss of `ttac.passes.differentiate.conservative`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ttac.errors import UnsupportedError
from ttac.passes.differentiate.conservative import LENGTHS
from ttac.passes.differentiate.losses import WEIGHTS, total
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.context import Context, MethodGraph, Subject, finished, new_graph, read
from ttac.passes.step_graphs.probabilities import over_positions
from ttac.passes.step_graphs.sample_weights import ones, read_entropies

CLASSES = "classes.average"


def check(subject: Subject) -> None:
    """Raise UnsupportedError if `balance` or `come` is on and the model answers yes or no."""
    chosen = [name for name in ("balance", "come") if subject.settings.get(name)]
    if chosen and subject.head is not None and subject.head.binary:
        raise UnsupportedError(
            f"`{chosen[0]}` compares classes that exclude each other, and the model answers yes or no",
            where=f"`--set {chosen[0]}=true`",
            hint="leave it out",
        )


def lengths(context: Context) -> MethodGraph:
    """The length of the scores at each position."""
    op = new_graph("lengths", context.opset)
    scores = read(op, context.logits, context.head.shape)
    return finished(op, {LENGTHS: op.ReduceL2(scores, [context.head.axis or 0], keepdims=1)})


def weigh(context: Context) -> MethodGraph:
    """Weights of the mean over all positions, with settings["balance"] larger for rare classes."""
    op = new_graph("weigh", context.opset)
    each = ones(op, read_entropies(op, context))
    state: list[StateTensor] = []
    if context.settings["balance"]:
        factors, classes = balanced(op, context, read(op, context.logits, context.head.shape))
        each, state = op.Mul(each, factors), [classes]
    return finished(op, {WEIGHTS: op.Div(each, total(op, each))}, state)


def balanced(op: Builder, context: Context, scores: ir.Value) -> tuple[ir.Value, StateTensor]:
    """A factor of each position, 1 on average, and the state that moves: the average probability of each class, q.

    The factor is proportional to 1/q of the likeliest class, q from before this batch.  q begins even and follows the
    mean probabilities of each batch with settings["balance_decay"].
    """
    axis = context.head.axis or 0
    initial = np.full(context.classes, 1 / context.classes, np.float32)
    average = state_input(op.graph, CLASSES, initial)
    factor = op.Gather(op.Reciprocal(average), op.ArgMax(scores, axis=axis, keepdims=0), axis=0)
    factor = op.Div(op.Mul(factor, total(op, op.Add(op.Mul(factor, 0.0), 1.0))), total(op, factor))
    mean = over_positions(op.ReduceMean, op.Softmax(scores, axis=axis), axis)
    decay = float(context.settings["balance_decay"])
    following = op.Add(op.Mul(average, decay), op.Mul(mean, 1 - decay))
    return factor, StateTensor(name=CLASSES, role="optimizer", initial=initial, value=average, next=following)
