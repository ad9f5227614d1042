"""Cut the joint graph in two: the forward hands its residuals to the backward, in the form the plan keeps them in."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir

from ttac.passes.partition.encode import encode
from ttac.passes.plan.plan import Plan
from ttac.passes.plan.schedule import recompute_late, save_early


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
    handed = list(dict.fromkeys([*outputs, *kept]))
    forward = ir.convenience.extract(graph, inputs=list(graph.inputs), outputs=handed)
    drop_unread_inputs(forward)
    save_early(forward)
    if not gradients:
        return Halves(_model(joint, forward, "forward"), None, ())
    free = list(graph.inputs)
    backward = ir.convenience.extract(graph, inputs=[*kept, *free], outputs=list(gradients))
    drop_unread_inputs(backward)
    recompute_late(backward)
    first, second = _model(joint, forward, "forward"), _model(joint, backward, "backward")
    halves = Halves(first, second, encode(first, second, plan))
    give_as_well(first.graph, [str(value.name) for value in outputs])
    refuse_mismatch(halves, {value.name for value in free})
    return halves


def give_as_well(graph: ir.Graph, names: Sequence[str]) -> None:
    """Make these values outputs again, in place, where a codec put what it keeps of them in their stead.

    The entropies of a dense head are large enough to be kept smaller for the backward; methods read them as they are.
    """
    given = {str(value.name) for value in graph.outputs}
    made = {str(value.name): value for node in graph for value in node.outputs}
    graph.outputs.extend(made[name] for name in dict.fromkeys(names) if name not in given and name in made)


def drop_unread_inputs(graph: ir.Graph) -> None:
    """Remove graph inputs that nothing reads."""
    for value in [v for v in graph.inputs if not v.uses() and not v.is_graph_output()]:
        graph.inputs.remove(value)


def _model(joint: ir.Model, graph: ir.Graph, name: str) -> ir.Model:
    graph.name = name
    return ir.Model(graph, ir_version=joint.ir_version, producer_name="ttac")


def refuse_mismatch(halves: Halves, given: Set[str | None]) -> None:
    """Every residual, what is not `given` to the step, leaves the forward with the type the backward expects."""
    assert halves.backward is not None
    made = {v.name: (v.dtype, str(v.shape)) for v in halves.forward.graph.outputs}
    for value in halves.backward.graph.inputs:
        if value.name not in given and made.get(value.name) != (value.dtype, str(value.shape)):
            raise AssertionError(f"residual `{value.name}`: forward {made.get(value.name)}, backward {value.shape}")
