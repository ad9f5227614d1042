"""The update of MECTA: scale, bias and momentum of a norm without drift stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from ttac.methods.mecta.gated import ACTIVE, ONE, trained_norms
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.state import StateTensor, state_input
from ttac.passes.step_graphs import optimizers
from ttac.passes.step_graphs.context import Context, MethodGraph


def update(context: Context) -> MethodGraph:
    """One step of the optimizer in which tensors of inactive norms, and their memory, keep their values."""
    made = optimizers.update(context)
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
