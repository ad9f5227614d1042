"""Predictions by class prototypes in place of the last linear layer (Iwasawa and Matsuo, NeurIPS 2021).

A support is a feature vector with the class and the entropy that the source's classifier gives it.  Supports begin with
the rows of the classifier's weight.  Each class keeps its `supports` of least entropy.  A prototype is the sum of the
class's supports, each of length 1, scaled to length 1.  The logits are the products of features and prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ttac.passes.differentiate.heads import scores_of
from ttac.passes.differentiate.losses import entropies
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import run
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs.context import Subject
from ttac.passes.step_graphs.linear_head import (
    class_head,
    flat_features,
    last_linear,
    replace_output,
    unit_rows,
    weight_rows,
)

ROOM = "refine"
SUPPORTS, ENTROPIES = "supports", "supports.entropy"
EMPTY = 1e4
"""Entropy in nats of a place without a support; real entropies are at most the logarithm of the number of classes."""


def classify_by_prototypes(subject: Subject) -> list[StateTensor]:
    """Replace the predictions by products with the prototypes, in the same form, in place.

    Raises UnsupportedError unless a linear layer with a constant weight predicts one class of each sample.
    """
    head = class_head(subject, "`t3a` keeps features of each class")
    model = subject.model
    op = Builder(model.graph, ROOM, model.opset_imports[""])
    with op.at("prototypes"):
        scores = scores_of(op, model.graph.outputs[0])
        layer = last_linear(scores, "keep")
        features = flat_features(op, layer)
        given = op.ArgMax(scores, axis=1, keepdims=0)
        state = _kept(op, _initial(subject, layer, scores), features, given, entropies(op, scores, head))
        products = op.MatMul(features, op.Transpose(_prototypes(op, state), perm=[1, 0]))
        forms = {"probabilities": op.Softmax, "log_probabilities": op.LogSoftmax}
        predictions = forms[head.values](products, axis=1) if head.values in forms else products
    replace_output(subject, predictions)
    return state


def _initial(subject: Subject, layer: ir.Node, scores: ir.Value) -> tuple[np.ndarray, np.ndarray]:
    """Supports [classes * supports, features] and entropies [classes, supports] from the rows of the weight."""
    weight, x = weight_rows(layer), layer.inputs[0]
    assert x is not None
    classifier = ir.convenience.extract(subject.model.graph, inputs=[x], outputs=[scores])
    rows = weight.reshape(len(weight), *dims(x)[1:])
    logits = run(ir.Model(classifier, ir_version=8), {str(x.name): rows})[str(scores.name)].astype(np.float64)
    log_p = logits - logits.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    entropy, label = -(np.exp(log_p) * log_p).sum(1), logits.argmax(1)
    kept = int(subject.settings["supports"])
    supports = np.zeros((len(weight), kept, weight.shape[1]), np.float32)
    least = np.full((len(weight), kept), EMPTY, np.float32)
    for c in range(len(weight)):
        own = np.flatnonzero(label == c)
        own = own[np.argsort(entropy[own], kind="stable")][:kept]
        supports[c, : len(own)], least[c, : len(own)] = weight[own], entropy[own]
    return supports.reshape(-1, weight.shape[1]), least


def _kept(
    op: Builder, first: Sequence[np.ndarray], features: ir.Value, given: ir.Value, entropy: ir.Value
) -> list[StateTensor]:
    """Supports and entropies, whose next values choose among the `first`, or last, ones and the features of this batch.

    A feature is a candidate of the class in `given` [N]; its entropy for the other classes is that of an empty place.
    """
    classes, kept = first[1].shape
    supports, least = (state_input(op.graph, n, v) for n, v in zip((SUPPORTS, ENTROPIES), first, strict=True))
    own = op.Equal(np.arange(classes, dtype=np.int64).reshape(-1, 1), op.Unsqueeze(given, [0]))
    candidates = op.Concat(least, op.Where(own, op.Unsqueeze(entropy, [0]), EMPTY), axis=1)
    entropies_next, place = op.TopK(candidates, [kept], axis=1, largest=0)
    # Rows of the supports lie class after class, and the rows of the batch behind them.
    offset = (np.arange(classes, dtype=np.int64) * kept).reshape(-1, 1)
    row = op.Where(op.Less(place, kept), op.Add(place, offset), op.Add(place, (classes - 1) * kept))
    supports_next = op.Gather(op.Concat(supports, features, axis=0), op.Reshape(row, [-1]), axis=0)
    state = []
    values = ((SUPPORTS, supports, supports_next), (ENTROPIES, least, entropies_next))
    for (name, value, following), initial in zip(values, first, strict=True):
        following.name = f"{name}.next"
        state.append(StateTensor(name=name, role="statistic", initial=initial, value=value, next=following))
    return state


def _prototypes(op: Builder, state: Sequence[StateTensor]) -> ir.Value:
    """The prototype of each class, [classes, features]."""
    supports, least = (tensor.next for tensor in state)
    (classes, kept), width = state[1].initial.shape, state[0].initial.shape[1]
    there = op.Reshape(op.Cast(op.Less(least, EMPTY), to=int(ir.DataType.FLOAT)), [-1, 1])
    unit = op.Mul(unit_rows(op, supports), there)
    return unit_rows(op, op.ReduceSum(op.Reshape(unit, [classes, kept, width]), [1], keepdims=0))
