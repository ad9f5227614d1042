"""Cut the joint graph in two: the forward hands encoded residuals to the backward."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir

from ttac.passes.partition.encode import encode
from ttac.passes.plan.decisions import Plan
from ttac.passes.plan.schedule import encode_early, recompute_late


@dataclass(frozen=True)
class GraphHalves:
    """Two models; each of the `residuals` is an output of `forward` and an input of `backward`, by the same name."""

    forward: ir.Model
    backward: ir.Model | None
    residuals: tuple[str, ...]


def partition(joint: ir.Model, outputs: Sequence[ir.Value], gradients: Sequence[ir.Value], plan: Plan) -> GraphHalves:
    """Return the two halves of `joint`, without a backward if there are no `gradients`.

    The forward computes `outputs` and residuals from inputs and state.  The backward computes `gradients` from
    residuals and state.  Nodes that the plan recomputes land in the backward, because the backward's outputs need them.
    Raises ValueError if the backward reads a value that the plan does not keep, or state that the forward moves.
    """
    graph = joint.graph
    values = ir.convenience.create_value_mapping(graph)
    kept = [values[name] for name in plan.residuals]
    forward_outputs = list(dict.fromkeys([*outputs, *kept]))
    forward = ir.convenience.extract(graph, inputs=list(graph.inputs), outputs=forward_outputs)
    drop_unread_inputs(forward)
    encode_early(forward)
    if not gradients:
        return GraphHalves(_model(joint, forward, "forward"), None, ())
    free = [value for value in graph.inputs if value.name not in plan.moved]
    backward = ir.convenience.extract(graph, inputs=[*kept, *free], outputs=list(gradients))
    drop_unread_inputs(backward)
    recompute_late(backward)
    first, second = _model(joint, forward, "forward"), _model(joint, backward, "backward")
    halves = GraphHalves(first, second, encode(first, second, plan))
    restore_outputs(first.graph, [str(value.name) for value in outputs])
    refuse_mismatch(halves, {value.name for value in free})
    return halves


def restore_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """Make the values `names` outputs of `graph` again where a codec replaced them by encoded tensors, in place.

    The entropies of a dense head are large enough for a codec; methods read them without one.
    """
    existing = {str(value.name) for value in graph.outputs}
    computed = {str(value.name): value for node in graph for value in node.outputs}
    missing = [name for name in dict.fromkeys(names) if name not in existing and name in computed]
    graph.outputs.extend(computed[name] for name in missing)


def drop_unread_inputs(graph: ir.Graph) -> None:
    """Remove the graph inputs without a reader, in place."""
    for value in [v for v in graph.inputs if not v.uses() and not v.is_graph_output()]:
        graph.inputs.remove(value)


def _model(joint: ir.Model, graph: ir.Graph, name: str) -> ir.Model:
    graph.name = name
    return ir.Model(graph, ir_version=joint.ir_version, producer_name="ttac")


def refuse_mismatch(halves: GraphHalves, free: Set[str | None]) -> None:
    """Raise AssertionError if an input of the backward outside `free` differs from the forward's output in type."""
    assert halves.backward is not None
    outputs = {v.name: (v.dtype, str(v.shape)) for v in halves.forward.graph.outputs}
    for value in halves.backward.graph.inputs:
        if value.name not in free and outputs.get(value.name) != (value.dtype, str(value.shape)):
            raise AssertionError(f"residual `{value.name}`: forward {outputs.get(value.name)}, backward {value.shape}")
