"""The update of MECTA: scale, bias and momentum of a norm without drift stay.

The scale of a dropped channel has no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ttac.methods.mecta.gated import ACTIVE, ONE, trained_norms
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.shapes import dims
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.operators.random_numbers import Numbers, seeded
from ttac.passes.plan.codecs.dropped_channels import PLACES
from ttac.passes.plan.keep_ratios import DRAWN, STRETCH
from ttac.passes.step_graphs import optimizers
from ttac.passes.step_graphs.context import Context, MethodGraph


def update(context: Context) -> MethodGraph:
    """One step of the optimizer in which tensors of inactive norms, and their memory, keep their values.

    If channels are dropped, it also moves the random numbers that draw them.
    """
    made = optimizers.update(context)
    if context.settings["keep"] < 1:
        made = _without_dropped(made, context)
    graph = made.model.graph
    op = Builder(graph, "update", context.opset)
    names = trained_norms(context)
    flags = {name: op.Greater(state_input(graph, f"{name}.{ACTIVE}", ONE), 0.0) for name in names}
    small = [p for p in context.parameters if p.initial.size < optimizers.LARGE_ELEMENTS]
    large = {p.name: [p] for p in context.parameters if p.initial.size >= optimizers.LARGE_ELEMENTS}
    state = []
    for tensor in made.state:
        members = [tensor] if tensor.role == "parameter" else large.get(tensor.name.partition("/")[2], small)
        if tensor.role in ("parameter", "optimizer"):
            tensor = _kept(op, tensor, _mask(op, members, flags))
        state.append(tensor)
    return replace(made, state=tuple(state))


def _without_dropped(made: MethodGraph, context: Context) -> MethodGraph:
    """The update with zeros for the gradients of the scales of channels that the forward dropped."""
    graph = made.model.graph
    op = Builder(graph, "update", context.opset)
    inputs = {str(value.name): value for value in graph.inputs}
    initial = seeded(int(context.settings["seed"]))
    numbers = Numbers(op, state_input(graph, DRAWN, initial))
    with op.at("dropped", before=next(iter(graph))):
        for layer in (layer for layer in context.layers if PLACES in layer.encoded):
            gradient, name = inputs[layer.gradient], layer.encoded[PLACES]
            places = ir.val(name, dtype=ir.DataType.INT64, shape=[f"{name}.size"])
            graph.inputs.append(places)
            readers = list(gradient.uses())
            none = np.zeros([int(size) for size in dims(gradient)], np.float32)
            some = op.Gather(gradient, places, axis=0)
            kept = op.ScatterElements(none, places, some, axis=0)
            for reader, index in readers:
                reader.replace_input_with(index, kept)
        following = numbers.following(len(context.layers) * STRETCH)
    following.name = f"{DRAWN}.next"
    graph.outputs.append(following)
    state = StateTensor(name=DRAWN, role="counter", initial=initial, value=numbers.state, next=following)
    return replace(made, state=(*made.state, state))


def _mask(op: Builder, members: Sequence[StateTensor], flags: Mapping[str, ir.Value]) -> ir.Value | None:
    """Where the vector of the `members` moves: one element, or one for each element; None if all always move."""
    of = [flags.get(member.name.rpartition(".")[0]) for member in members]
    if len(members) == 1 or all(flag is None for flag in of):
        return of[0]
    each = [
        op.Expand(op.constant(ONE > 0) if flag is None else flag, [member.initial.size])
        for flag, member in zip(of, members, strict=True)
    ]
    return op.Concat(*each, axis=0)


def _kept(op: Builder, tensor: StateTensor, mask: ir.Value | None) -> StateTensor:
    """The tensor that moves only where `mask` is true."""
    if mask is None or tensor.next is None:
        return tensor
    outputs, stepped = op.graph.outputs, tensor.next
    name, position = str(stepped.name), outputs.index(stepped)
    stepped.name = f"{tensor.name}.stepped"
    kept = op.Where(mask, stepped, tensor.value, name=name)
    outputs[position] = kept
    return replace(tensor, next=kept)
