"""From an adapted model to a joint graph: attach the loss, append the gradients, drop parameters that have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

import ttac.passes.differentiate.rules  # noqa: F401  (registers the rules)
from ttac.passes.adapt.adapt_norms import BATCH_SIZE, batch_size
from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.losses import Loss, attach_loss
from ttac.passes.differentiate.reverse_walk import differentiate
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.keys import SEED
from ttac.passes.graph.shapes import sample_size
from ttac.passes.graph.state import StateTensor
from ttac.passes.operators.gelu import gather_gelus
from ttac.spec import Reference


@dataclass(frozen=True)
class Joint:
    """A model whose graph holds forward, loss and gradients.

    Attributes:
        loss: the scalar that was differentiated, and the scalars to report.
        parameters: the trained state; gradients: the graph values of their gradients, in the same order.
        backward: the nodes that autodiff made.
    """

    model: ir.Model
    logits: ir.Value
    loss: Loss | None
    parameters: tuple[StateTensor, ...] = ()
    gradients: tuple[ir.Value, ...] = ()
    backward: tuple[ir.Node, ...] = ()


def differentiate_loss(
    model: ir.Model, logits: ir.Value, loss: Reference, parameters: tuple[StateTensor, ...], head: Head | None = None
) -> Joint:
    """Append loss and gradients to `model`, in place; `head` says how `logits` are read, or that is decided here.

    A parameter that the loss does not depend on becomes a constant again: a gradient of zero would still let momentum
    move it.
    Gradients are named `<parameter>.grad`.  Raises UnsupportedError listing operators without a gradient rule.
    """
    if not loss:
        return Joint(model, logits, None)
    graph, attached = model.graph, attach_loss(model, loss, logits, head)
    if not parameters:
        return Joint(model, logits, attached)
    gather_gelus(model)
    forward = set(graph) - _weighing(attached)
    found = differentiate(graph, attached.scalar, [p.value for p in parameters], model.opset_imports[""])
    pairs = [(p, g) for p, g in zip(parameters, found, strict=True) if g is not None]
    hold(graph, [p for p, g in zip(parameters, found, strict=True) if g is None])
    for parameter, gradient in pairs:
        gradient.name = f"{parameter.name}.grad"
    share_counts(model)
    backward = tuple(node for node in graph if node not in forward)
    return Joint(model, logits, attached, tuple(p for p, _ in pairs), tuple(g for _, g in pairs), backward)


def own_logits(joint: Joint) -> Joint:
    """The joint graph whose logits are a copy where the loss reads them; in place.

    A program that runs the forward again keeps the logits of the first run, and the backward needs those of the second.
    """
    scores, graph = joint.logits, joint.model.graph
    if joint.loss is None or joint.loss.scores is not scores:
        return joint
    name = str(scores.name)
    scores.name = f"{name}.scores"
    op = Builder(graph, "loss", joint.model.opset_imports[""])
    # Last of all: by then the tensors that the loss needed are gone.
    with op.at("loss"):
        logits = op.Identity(scores, name=name)
    graph.outputs[list(graph.outputs).index(scores)] = logits
    return replace(joint, logits=logits)


def hold(graph: ir.Graph, parameters: Sequence[StateTensor]) -> None:
    """Make `parameters` constants instead of graph inputs, with the values they begin with."""
    for parameter in parameters:
        value = parameter.value
        graph.inputs.remove(value)
        value.const_value = ir.tensor(parameter.initial, name=value.name)
        graph.register_initializer(value)


def _weighing(loss: Loss) -> set[ir.Node]:
    """The nodes that read the samples' weights, and what they lead to: known only when the forward is done."""
    found: set[ir.Node] = set()
    pending = list(loss.inputs)
    while pending:
        value = pending.pop()
        readers = {use.node for use in value.uses()} - found
        found |= readers
        pending += [output for node in readers for output in node.outputs]
    for value in loss.inputs:
        value.metadata_props[SEED] = "true"
    return found


def share_counts(model: ir.Model) -> None:
    """Compute every `ChannelCount` from one batch size, in place: N is the same everywhere, nothing is kept for it."""
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
