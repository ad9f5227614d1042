"""Cut the joint graph in two: the forward hands its residuals to the backward, bools packed to bits where planned."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import onnx_ir as ir

import ttac.passes.codecs  # noqa: F401  (registers PackBits and UnpackBits)
from ttac.passes.autodiff import dims
from ttac.passes.build import Builder
from ttac.passes.plan import Plan
from ttac.passes.schedule import recompute_late, save_early


@dataclass(frozen=True)
class Halves:
    """The two graphs as models; the residuals are outputs of `forward` and inputs of `backward` by the same names."""

    forward: ir.Model
    backward: ir.Model | None
    residuals: tuple[str, ...]


def partition(joint: ir.Model, outputs: Sequence[ir.Value], gradients: Sequence[ir.Value], plan: Plan) -> Halves:
    """Forward: inputs and state to `outputs` and residuals.  Backward: residuals and state to `gradients`.

    Nodes that the plan recomputes land in the backward by themselves.  Raises ValueError if the plan leaves a value
    that the gradients read out of reach: the halves must be closed.
    """
    graph = joint.graph
    values = ir.convenience.create_value_mapping(graph)
    kept = [values[name] for name in plan.residuals]
    forward = ir.convenience.extract(graph, inputs=list(graph.inputs), outputs=[*outputs, *kept])
    drop_unread_inputs(forward)
    save_early(forward)
    if not gradients:
        return Halves(_model(joint, forward, "forward"), None, ())
    free = list(graph.inputs)
    backward = ir.convenience.extract(graph, inputs=[*kept, *free], outputs=list(gradients))
    drop_unread_inputs(backward)
    recompute_late(backward)
    halves = Halves(_model(joint, forward, "forward"), _model(joint, backward, "backward"), plan.residuals)
    halves = pack_bits(halves, plan)
    refuse_mismatch(halves, {value.name for value in free})
    return halves


def drop_unread_inputs(graph: ir.Graph) -> None:
    """Remove graph inputs that nothing reads."""
    for value in [v for v in graph.inputs if not v.uses() and not v.is_graph_output()]:
        graph.inputs.remove(value)


def _model(joint: ir.Model, graph: ir.Graph, name: str) -> ir.Model:
    graph.name = name
    return ir.Model(graph, ir_version=joint.ir_version, producer_name="ttac")


def pack_bits(halves: Halves, plan: Plan) -> Halves:
    """Keep the planned bool residuals as packed bits: pack right behind the mask, unpack before its first reader."""
    assert halves.backward is not None
    renamed = {}
    for name in sorted(plan.bits):
        packed = _pack(halves.forward, next(v for v in halves.forward.graph.outputs if v.name == name))
        _unpack(halves.backward, next(v for v in halves.backward.graph.inputs if v.name == name), packed)
        renamed[name] = str(packed.name)
    return replace(halves, residuals=tuple(renamed.get(name, name) for name in halves.residuals))


def _pack(forward: ir.Model, mask: ir.Value) -> ir.Value:
    graph = forward.graph
    op = Builder(graph, "plan", forward.opset_imports[""])
    nodes = [*graph, None]
    with op.at("residuals", before=nodes[nodes.index(mask.producer()) + 1]):
        packed = op.PackBits(mask, name=f"{mask.name}.bits")
    graph.outputs[list(graph.outputs).index(mask)] = packed
    return packed


def _unpack(backward: ir.Model, mask: ir.Value, packed: ir.Value) -> None:
    graph = backward.graph
    op = Builder(graph, "plan", backward.opset_imports[""])
    bits = ir.val(str(packed.name), dtype=packed.dtype, shape=packed.shape)
    graph.inputs[list(graph.inputs).index(mask)] = bits
    readers = {use.node for use in mask.uses()}
    with op.at("residuals", before=next(node for node in graph if node in readers)):
        restored = op.UnpackBits(bits, shape=[size if isinstance(size, int) else -1 for size in dims(mask)])
    ir.convenience.replace_all_uses_with(mask, restored)


def refuse_mismatch(halves: Halves, given: Set[str | None]) -> None:
    """Every residual, what is not `given` to the step, leaves the forward with the type the backward expects."""
    assert halves.backward is not None
    made = {v.name: (v.dtype, str(v.shape)) for v in halves.forward.graph.outputs}
    for value in halves.backward.graph.inputs:
        if value.name not in given and made.get(value.name) != (value.dtype, str(value.shape)):
            raise AssertionError(f"residual `{value.name}`: forward {made.get(value.name)}, backward {value.shape}")
