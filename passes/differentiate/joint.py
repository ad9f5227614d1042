"""From an adapted model to a joint graph: attach the loss, append the gradients, drop parameters that have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

import ttac.passes.differentiate.rules  # noqa: F401  (registers the rules)
from ttac.passes.adapt.adapt_norms import BATCH_SIZE, batch_size
from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.losses import Loss, Output, attach_loss
from ttac.passes.differentiate.reverse_walk import differentiate
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import SEED
from ttac.passes.graph.shapes import sample_size
from ttac.passes.graph.state import StateTensor, freeze
from ttac.passes.operators.gelu import gather_gelus
from ttac.spec import Reference


@dataclass(frozen=True, kw_only=True)
class Joint:
    """A model whose graph holds forward, loss and gradients.

    Attributes:
        model: the model in normal form, with loss and gradients in its graph.
        logits: the output of the model.
        loss: the differentiated scalar, and the scalars to report; None for a method without a loss.
        parameters: the trained state.
        gradients: the graph values of the gradients, in the order of `parameters`; empty without a loss.
        backward: the nodes that need a gradient or an input that gets a value after the forward.
    """

    model: ir.Model
    logits: ir.Value
    loss: Loss | None = None
    parameters: tuple[StateTensor, ...] = ()
    gradients: tuple[ir.Value, ...] = ()
    backward: tuple[ir.Node, ...] = ()


def differentiate_loss(
    model: ir.Model,
    logits: ir.Value,
    loss: Reference,
    parameters: tuple[StateTensor, ...],
    head: Head | None = None,
    others: Sequence[Output] = (),
) -> Joint:
    """Append loss and gradients to `model`, in place; `head` is the reading of `logits`, decided here if None.

    `others` are outputs that the loss reads too.  A parameter on which the loss does not depend becomes a constant
    again: with a gradient of zero, momentum would still move the parameter.  Gradients are named `<parameter>.grad`.
    Raises UnsupportedError with all operators that have no gradient rule.
    """
    if not loss:
        return Joint(model=model, logits=logits, parameters=parameters)
    graph, attached = model.graph, attach_loss(model, loss, logits, head, others)
    if not parameters:
        return Joint(model=model, logits=logits, loss=attached)
    gather_gelus(model)
    forward = set(graph) - _weighing(attached)
    gradients = differentiate(graph, attached.scalar, [p.value for p in parameters], model.opset_imports[""])
    pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    freeze(graph, [p for p, g in zip(parameters, gradients, strict=True) if g is None])
    for parameter, gradient in pairs:
        gradient.name = f"{parameter.name}.grad"
    share_counts(model)
    backward = tuple(node for node in graph if node not in forward)
    return Joint(
        model=model,
        logits=logits,
        loss=attached,
        parameters=tuple(p for p, _ in pairs),
        gradients=tuple(g for _, g in pairs),
        backward=backward,
    )


def own_outputs(joint: Joint) -> Joint:
    """Return the joint graph whose outputs are copies where other nodes or the loss read them; in place.

    A program that runs the forward again keeps the outputs of the first run, and the backward needs those of the
    second.
    """
    graph = joint.model.graph
    for position, value in enumerate(list(graph.outputs)):
        is_scores = joint.loss is not None and joint.loss.scores is value
        if not is_scores and not value.uses():
            continue
        name = str(value.name)
        value.name = f"{name}.scores" if is_scores else f"{name}.read"
        op = Builder(graph, "loss", joint.model.opset_imports[""])
        # The copies are the last nodes: by then the tensors of the loss are free.
        with op.at("loss"):
            copy = op.Identity(value, name=name)
        graph.outputs[position] = copy
        joint = replace(joint, logits=copy) if value is joint.logits else joint
    return joint


def _weighing(loss: Loss) -> set[ir.Node]:
    """The nodes that follow from inputs of the loss that get a value after the forward, such as sample weights."""
    nodes: set[ir.Node] = set()
    pending = list(loss.inputs)
    while pending:
        value = pending.pop()
        readers = {use.node for use in value.uses()} - nodes
        nodes |= readers
        pending += [output for node in readers for output in node.outputs]
    for value in loss.inputs:
        value.metadata_props[SEED] = "true"
    return nodes


def share_counts(model: ir.Model) -> None:
    """Compute every `ChannelCount` from one batch size N, in place, so that no residual is kept for a count."""
    graph = model.graph
    counts = [node for node in graph if node.op_type == "ChannelCount"]
    if not counts:
        return
    op = Builder(graph, "autodiff", model.opset_imports[""])
    known = [value for node in graph for value in node.outputs if value.name == BATCH_SIZE]
    batch = known[0] if known else batch_size(op, graph)
    for node in counts:
        x = node.inputs[0]
        assert x is not None and x.shape is not None
        elements = sample_size(x.shape) // int(str(x.shape[1]))
        with op.at("batch", before=node):
            count = op.Mul(batch, float(elements)) if elements != 1 else op.Identity(batch)
        ir.convenience.replace_nodes_and_values(graph, node, [node], [], node.outputs, [count])
