"""Cut the joint graph in two: the forward hands its residuals to the backward, bools packed to bits where planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

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
    pack_bits(halves, plan)
    refuse_mismatch(halves)
    return halves


def drop_unread_inputs(graph: ir.Graph) -> None:
    """Remove graph inputs that nothing reads."""
    for value in [v for v in graph.inputs if not v.uses() and not v.is_graph_output()]:
        graph.inputs.remove(value)


def _model(joint: ir.Model, graph: ir.Graph, name: str) -> ir.Model:
    graph.name = name
    return ir.Model(graph, ir_version=joint.ir_version, producer_name="ttac")


def pack_bits(halves: Halves, plan: Plan) -> None:
    """Keep the planned bool residuals as packed bits: pack at the end of the forward, unpack at its first use."""
    assert halves.backward is not None
    for name in sorted(plan.bits):
        source = next(v for v in halves.forward.graph.outputs if v.name == name)
        op = Builder(halves.forward.graph, "plan", halves.forward.opset_imports[""])
        packed = op.PackBits(source, name=f"{name}.bits")
        outputs = halves.forward.graph.outputs
        outputs[list(outputs).index(source)] = packed
        reader = next(v for v in halves.backward.graph.inputs if v.name == name)
        _unpack(halves.backward, reader, packed)


def _unpack(backward: ir.Model, reader: ir.Value, packed: ir.Value) -> None:
    graph = backward.graph
    op = Builder(graph, "plan", backward.opset_imports[""])
    bits = ir.val(str(packed.name), dtype=packed.dtype, shape=packed.shape)
    with op.at("residuals", before=reader.uses()[0].node):
        restored = op.UnpackBits(bits, shape=[d if isinstance(d, int) else -1 for d in dims(reader)])
    ir.convenience.replace_all_uses_with(reader, restored)
    inputs = graph.inputs
    inputs[list(inputs).index(reader)] = bits


def refuse_mismatch(halves: Halves) -> None:
    """Every residual leaves the forward with the type the backward expects."""
    assert halves.backward is not None
    made = {v.name: (v.dtype, str(v.shape)) for v in halves.forward.graph.outputs}
    given = {v.name for v in halves.forward.graph.inputs}
    for value in halves.backward.graph.inputs:
        if value.name not in given and made.get(value.name) != (value.dtype, str(value.shape)):
            raise AssertionError(f"residual `{value.name}`: forward {made.get(value.name)}, backward {value.shape}")
