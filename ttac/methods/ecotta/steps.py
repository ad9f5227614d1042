"""The loss of EcoTTA (Song et al., arXiv:2303.01904, eq. 2 to 4), and the weights of its two terms in each step."""

from __future__ import annotations

import onnx_ir as ir

from ttac.methods.ecotta.meta_networks import APART
from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.losses import SAMPLES, WEIGHTS, Loss, entropies, mean, total
from ttac.passes.graph.builder import Builder
from ttac.passes.step_graphs import optimizers
from ttac.passes.step_graphs.context import Context, MethodGraph, finished, new_graph
from ttac.passes.step_graphs.sample_weights import SELECTED, averaging, below, margin, read_entropies

SHARE = "nearness.share"


def certain_and_near(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """sum_i w_i H_i + v sum_k |out_k - u_k|, the mean absolute distance of part k from its frozen features u_k.

    Weights and v come from another graph.  The distance of part k has a gradient in part k alone.
    """
    each = entropies(op, scores, head)
    each.name = SAMPLES
    weights = ir.val(WEIGHTS, dtype=each.dtype, shape=each.shape)
    share = ir.val(SHARE, dtype=each.dtype, shape=ir.Shape([]))
    op.graph.inputs.extend([weights, share])
    apart = [value for node in op.graph for value in node.outputs if str(value.name).endswith(APART)]
    distance = apart[0]
    for value in apart[1:]:
        distance = op.Add(distance, value)
    scalar = op.Add(total(op, op.Mul(each, weights)), op.Mul(distance, share), name="certain.and.near")
    stats = {"entropy": mean(op, each, "entropy"), "distance": op.Identity(distance, name="distance")}
    return Loss(
        scalar=scalar,
        stats=stats,
        head=head,
        samples=each,
        weights=weights,
        scores=scores,
        other_inputs=(share,),
    )


def keep_near(context: Context) -> MethodGraph:
    """Weights of the distance alone."""
    op = new_graph("keep_near", context.opset)
    none = op.Mul(read_entropies(op, context), 0.0)
    return finished(op, {WEIGHTS: none, SHARE: _share(op, none, float(context.settings["nearness"]))})


def learn_certain(context: Context) -> MethodGraph:
    """Weights 1/n on the n samples of low entropy; `selected` is n."""
    return _certain(context, "learn_certain", 0.0)


def both(context: Context) -> MethodGraph:
    """Weights of both terms."""
    return _certain(context, "both", float(context.settings["nearness"]))


def _certain(context: Context, name: str, nearness: float) -> MethodGraph:
    op = new_graph(name, context.opset)
    entropy = read_entropies(op, context)
    weights, count = averaging(op, below(op, entropy, margin(context)))
    outputs = {WEIGHTS: weights, SHARE: _share(op, entropy, nearness), SELECTED: count}
    return finished(op, outputs, stats={SELECTED: "selected"})


def _share(op: Builder, samples: ir.Value, nearness: float) -> ir.Value:
    """The number as a scalar that follows from an input, so that no graph has a constant output."""
    return op.Add(op.Mul(op.Cast(op.Squeeze(op.Shape(samples, start=0, end=1), [0]), to=1), 0.0), nearness)


def update(context: Context) -> MethodGraph:
    """One step of the optimizer."""
    return optimizers.update(context)
