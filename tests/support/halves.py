"""The joint graph of a small model, its plans, and the values that its halves compute."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

import onnx_ir as ir

from tests.support.whole_models import Arrays, normal, sites_of, spelled
from ttac.passes.adapt.adapt_norms import adapt_norms
from ttac.passes.differentiate.joint import Joint, differentiate_loss
from ttac.passes.graph.execute import run
from ttac.passes.partition.partition import GraphHalves
from ttac.passes.plan.decisions import SMALL_BYTES, Decide, Decision, Plan, keep_as, nbytes
from ttac.passes.plan.plan import plan_activations
from ttac.spec import BATCH_STATISTICS, Statistics


def is_sorted(graph: ir.Graph) -> bool:
    """Whether every node follows the producers of its inputs."""
    seen: set[ir.Node | None] = {None}
    for node in graph:
        if any(value is not None and value.producer() not in seen for value in node.inputs):
            return False
        seen.add(node)
    return True


def joint_of(path: Path, statistics: Statistics = BATCH_STATISTICS) -> tuple[Joint, list[ir.Value], Arrays]:
    """Return a file's joint graph with `statistics`, the outputs of the forward, and the initial state."""
    model = normal(path)
    made = adapt_norms(model, sites_of(model), statistics, {}, trains=True)
    joint = differentiate_loss(model, model.graph.outputs[0], "entropy", made.parameters)
    return joint, [joint.logits], {tensor.name: tensor.initial for tensor in made.state}


def packing(batch: int, floats: str = "dense") -> Decide:
    """Return a decision that keeps masks as bits and every large float tensor with the codec `floats`."""

    def decide(value: ir.Value, half: Set[ir.Node]) -> Decision:
        if value.dtype == ir.DataType.BOOL:
            return keep_as(value, "bits", batch)
        large = value.dtype == ir.DataType.FLOAT and nbytes(value, batch) > SMALL_BYTES
        return keep_as(value, floats if large else "dense", batch)

    return decide


def planned(joint: Joint, batch: int, decide: Decide | None = None) -> Plan:
    graph = joint.model.graph
    return plan_activations(graph, joint.backward, list(graph.inputs), batch, decide)


def run_halves(halves: GraphHalves, feeds: Arrays) -> Arrays:
    """Return the outputs of both halves by name."""
    assert halves.backward is not None
    outputs = run(spelled(halves.forward), feeds)
    return {**outputs, **run(spelled(halves.backward), {**feeds, **outputs})}
