"""How many bytes a step holds at once: hand-made graphs, and the halves of a net."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tests.support.halves import joint_of, planned
from tests.support.whole_models import MODELS, SINGLE
from ttac.passes.graph.builder import Builder
from ttac.passes.partition.partition import partition
from ttac.passes.plan.decisions import nbytes
from ttac.passes.plan.liveness import bytes_over_time, peak

SIZE = 16 * 4
"""Bytes of a sample of [N, 16]."""


def chain(*operators: str) -> tuple[ir.Model, list[ir.Value]]:
    """x [N, 16] through unary operators, the last of them the output."""
    x = ir.val("x", SINGLE, ["N", 16])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="chain")
    op = Builder(graph, "test")
    values = [x]
    for position, name in enumerate(operators):
        values.append(getattr(op, name)(values[-1], name=f"v{position}"))
    graph.outputs.append(values[-1])
    return ir.Model(graph, ir_version=8), values


def alive(model: ir.Model, batch: int = 1) -> list[int]:
    """In tensors of [batch, 16]."""
    found = bytes_over_time(model.graph, batch)
    assert not (found % (SIZE * batch)).any()
    return [int(size) for size in found // (SIZE * batch)]


def test_inputs_do_not_count_towards_the_peak() -> None:
    """`Cos` cannot write into its input: two tensors at once, but for the first, which reads an input."""
    model, _ = chain("Cos", "Cos", "Cos")
    assert alive(model) == [1, 2, 2] and alive(model, 5) == [1, 2, 2]


def test_activations_write_into_what_nobody_else_reads() -> None:
    model, values = chain("Cos", "Relu", "Relu")
    assert alive(model) == [1, 1, 1]
    op = Builder(model.graph, "test")
    model.graph.outputs[:] = [op.Add(values[-1], values[1])]
    # The first Relu may not overwrite its input now, the second its own; a sum needs room of its own.
    assert alive(model) == [1, 2, 2, 3]


def test_a_view_is_its_input() -> None:
    x = ir.val("x", SINGLE, ["N", 16])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="views")
    op = Builder(graph, "test")
    first = op.Cos(x)
    square = ir.val("square", SINGLE, ["N", 4, 4])
    again = op.Reshape(op.Reshape(first, [-1, 4, 4], like=square), [-1, 16], like=x)
    graph.outputs.append(op.Cos(again))
    # The tensor lives as long as its last view.
    assert [int(size) // SIZE for size in bytes_over_time(graph, 1)] == [1, 1, 1, 2]


def test_what_is_handed_on_lives_to_its_last_reader() -> None:
    """Three graphs: `r` goes from the first to the third, `s` from the first to the second."""
    x = ir.val("x", SINGLE, ["N", 16])
    first = ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="first")
    op = Builder(first, "test")
    first.outputs.extend([op.Cos(x, name="r"), op.Sin(x, name="s")])
    models = {"first": ir.Model(first, ir_version=8)}
    for name, given in (("second", "s"), ("third", "r")):
        taken = ir.val(given, SINGLE, ["N", 16])
        graph = ir.Graph([taken], [], nodes=[], opset_imports={"": 18}, name=name)
        made = Builder(graph, "test")
        graph.outputs.append(made.Cos(made.Cos(taken), name=f"{name}.out"))
        models[name] = ir.Model(graph, ir_version=8)
    moment = peak(models, ["first", "second", "third"], 3)
    # While the second runs, `r` and `s` are held and two tensors of its own; nobody reads its output.
    assert (moment.graph, moment.bytes) == ("second", 4 * 3 * SIZE)
    assert peak(models, ["first"], 3).bytes == 2 * 3 * SIZE and peak({}, [], 3).bytes == 0


def test_the_highest_moment_of_a_net() -> None:
    """At least the residuals that cross, at most everything; in proportion to the batch."""
    joint, outputs, _ = joint_of(MODELS["resnext"])
    graph, plan = joint.model.graph, planned(joint, 64)
    everything = sum(nbytes(value, 64) for node in graph for value in node.outputs)
    halves = partition(joint.model, outputs, joint.gradients, plan)
    assert halves.backward is not None
    models = {"forward": halves.forward, "backward": halves.backward}
    one, two = (peak(models, ["forward", "backward"], batch).bytes for batch in (64, 128))
    assert plan.bytes < one < everything
    assert np.isclose(two, 2 * one, rtol=0.02)
