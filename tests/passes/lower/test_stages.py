"""The halves of a joint graph: partition, stages, the order of nodes, and that engines keep to it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from random import Random

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.halves import is_sorted, joint_of, packing, planned, run_halves
from tests.support.whole_models import MODELS, SINGLE, Arrays, samples, spelled
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import run
from ttac.passes.lower.gradient_dependencies import add_gradient_dependencies
from ttac.passes.lower.stages import _lowest, choose_cuts, split_backward
from ttac.passes.partition.partition import partition
from ttac.passes.plan.decisions import SMALL_BYTES, nbytes
from ttac.passes.plan.schedule import encode_early, recompute_late
from ttac.runtime.engine_import import engine


def test_stages_give_what_one_backward_gives() -> None:
    joint, outputs, state = joint_of(MODELS["densenet"])
    plan = planned(joint, 512)
    halves = partition(joint.model, outputs, joint.gradients, plan)
    assert halves.backward is not None
    names = [str(gradient.name) for gradient in joint.gradients]
    feeds = {"x": samples((3, 16, 16), 3), **state}
    expected = run_halves(halves, feeds)
    forward = run(spelled(halves.forward), feeds)
    for count in (1, 2, 3, 6):
        stages = split_backward(halves.backward, halves.residuals, 512, count)
        assert 1 <= len(stages) <= count and (len(stages) > 1) == (count > 1)
        values = {**feeds, **forward}
        ends = []
        for stage in stages:
            assert is_sorted(stage.graph)
            values |= run(spelled(stage), values)
            ends.append({value.name for value in stage.graph.inputs} & set(halves.residuals))
        for name in names:
            np.testing.assert_array_equal(values[name], expected[name])
        nodes = sum(len(stage.graph) for stage in stages)
        assert nodes == len(halves.backward.graph) if count > 1 else stages[0] is halves.backward


def test_small_residuals_are_not_worth_a_stage() -> None:
    joint, outputs, _ = joint_of(MODELS["resnet"])
    halves = partition(joint.model, outputs, joint.gradients, planned(joint, 4))
    assert halves.backward is not None
    assert split_backward(halves.backward, halves.residuals, 4, 6) == [halves.backward]


@pytest.mark.parametrize("floats", [None, "dense", "int8"])
def test_later_stages_hold_fewer_residuals(floats: str | None) -> None:
    """Each stage frees residual bytes, also packed residuals; that is the purpose of stages."""
    joint, outputs, _ = joint_of(MODELS["wide_resnet"])
    halves = partition(
        joint.model, outputs, joint.gradients, planned(joint, 512, None if floats is None else packing(512, floats))
    )
    assert halves.backward is not None
    stages = split_backward(halves.backward, halves.residuals, 512, 4)
    assert len(stages) > 2
    left = [
        {v.name for stage in stages[first:] for v in stage.graph.inputs} & set(halves.residuals)
        for first in range(len(stages))
    ]
    sizes = {str(v.name): nbytes(v, 512) for v in halves.forward.graph.outputs}
    held = [sum(sizes[str(name)] for name in names) for names in left]
    assert set(left[0]) == set(halves.residuals)
    assert all(after < before - held[0] / 20 for before, after in pairwise(held))


def test_masks_follow_their_inputs_and_recomputations_wait() -> None:
    joint, outputs, _ = joint_of(MODELS["resnext"])
    halves = partition(joint.model, outputs, joint.gradients, planned(joint, 32, packing(32)))
    assert halves.backward is not None
    forward, backward = list(halves.forward.graph), list(halves.backward.graph)
    order = {node: index for index, node in enumerate(forward)}
    for node in forward:
        if node.op_type in ("Positive", "PackBits"):
            made = max(order[p] for v in node.inputs if v is not None and (p := v.producer()) is not None)
            between = forward[made + 1 : order[node]]
            assert all(other.metadata_props["ttac.room"] in ("autodiff", "plan") for other in between)
    order = {node: index for index, node in enumerate(backward)}
    again = [node for node in backward if node.op_type == "UnpackBits"]
    assert again
    for node in again:
        first = min(order[use.node] for use in node.outputs[0].uses())
        assert first == order[node] + 1


def test_moving_nodes_keeps_the_graph_sorted() -> None:
    for name in ("efficientnet", "shufflenet", "hourglass"):
        joint, _, _ = joint_of(MODELS[name])
        graph = joint.model.graph
        nodes = set(graph)
        for move in (encode_early, recompute_late, recompute_late, encode_early):
            move(graph)
            assert is_sorted(graph) and set(graph) == nodes


# --- where the stages begin -------------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_lowest_peak_of_all_choices(places: int, count: int, random: Random) -> None:
    """Against every choice of cuts."""
    starts, end = [0, *sorted(random.sample(range(1, 40), places))], 40
    cost = {(a, b): random.randrange(1, 9) for a in starts for b in [*starts, end] if a < b}

    def stages(cuts: Sequence[int]) -> list[int]:
        return [cost[pair] for pair in pairwise([0, *cuts, end])]

    every = [cuts for number in range(count) for cuts in combinations(starts[1:], number)]
    found = stages(_lowest(cost, end, count))
    assert len(found) <= count and max(found) == min(max(stages(cuts)) for cuts in every)


def test_a_cut_hands_on_little() -> None:
    """Each of the residuals is read by a large gradient, which is small in between: there is where the first cuts are."""
    wide, narrow = ir.val("dy", SINGLE, ["N", 4, 64, 64]), ["N", 4, 8, 8]
    graph = ir.Graph([wide], [], nodes=[], opset_imports={"": 18}, name="backward")
    op, value = Builder(graph, "test"), wide
    for layer in range(4):
        residual = ir.val(f"r{layer}", SINGLE, ["N", 4, 64, 64])
        graph.inputs.append(residual)
        large = op.Mul(value, residual)
        value = op.AveragePool(large, kernel_shape=[8, 8], strides=[8, 8], name=f"small{layer}")
        assert [str(size) for size in value.shape or ()] == [str(size) for size in narrow]
        value = op.Resize(value, None, np.array([1, 1, 8, 8], np.float32)) if layer < 3 else value
        if layer < 3:
            value.shape = wide.shape
    graph.outputs.append(value)
    cuts = choose_cuts(list(graph), graph.inputs[1:], 64, 4)
    assert {list(graph)[cut].op_type for cut in cuts[:2]} == {"Resize"}


def test_gradients_of_parameters_are_held_until_the_update() -> None:
    """Right behind the first one is no good place: it stays, and only with the second residual does anything go."""
    sizes = {"r0": 2, "r1": 8, "r2": 2}
    graph = ir.Graph(
        [ir.val(name, SINGLE, [size << 10]) for name, size in sizes.items()], [], nodes=[], opset_imports={"": 18}
    )

    def made(size: int, *read: ir.Value) -> ir.Value:
        value = ir.val(f"v{len(graph)}", SINGLE, [size << 10])
        graph.append(ir.node("MatMul", read, outputs=[value]))
        return value

    first, second, third = graph.inputs
    parameter = made(8, first, first)
    small = made(1, made(8, second, second), second)
    graph.outputs.extend([parameter, made(1, made(17, third, small), third)])
    assert choose_cuts(list(graph), graph.inputs, 1, 2) == [3]


# --- gradient dependencies --------------------------------------------------------------------------------------------


def rounded_backward() -> tuple[ir.Model, set[str], Arrays]:
    """A net's backward in standard operators, the inputs that exist before the first gradient, and all inputs' values."""
    joint, outputs, state = joint_of(MODELS["wide_resnet"])
    halves = partition(joint.model, outputs, joint.gradients, planned(joint, 64, packing(64, "int8")))
    assert halves.backward is not None
    feeds = {"x": samples((3, 16, 16), 3), **state}
    available = {*halves.residuals, *(str(value.name) for value in joint.model.graph.inputs)}
    return spelled(halves.backward), available, {**feeds, **run(spelled(halves.forward), feeds)}


def test_dependencies_change_no_number_and_delay_residuals() -> None:
    model, available, feeds = rounded_backward()
    before = run(model, feeds)
    large = {str(v.name) for v in model.graph.inputs if nbytes(v, 64) > SMALL_BYTES}
    add_gradient_dependencies(model, available, 64)
    after = run(model, feeds)
    assert is_sorted(model.graph) and before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    late: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type == "Size" or any(v is not None and v.producer() in late for v in node.inputs):
            late.add(node)
    read = {str(v.name) for node in model.graph if node not in late for v in node.inputs if v is not None}
    # No gradient exists before the residuals that the first gradient needs.
    assert len(large) > 6 and len(large & read) <= 3


@pytest.mark.parametrize("optimization", ["basic", "extended", "all"])
def test_an_engine_keeps_gradient_dependencies(optimization: str, tmp_path: Path) -> None:
    """The engine's optimisations replace shapes by constants where they can, as those of Shape and Concat."""
    model, available, _ = rounded_backward()
    add_gradient_dependencies(model, available, 64)
    dependencies = sum(node.op_type == "Size" for node in model.graph)
    ir.save(model, tmp_path / "backward.onnx")
    module = engine()
    options = module.SessionOptions()
    options.graph_optimization_level = getattr(module.GraphOptimizationLevel, f"ORT_ENABLE_{optimization.upper()}")
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 4
    module.InferenceSession(str(tmp_path / "backward.onnx"), options, providers=["CPUExecutionProvider"])
    left = ir.load(tmp_path / "optimized.onnx").graph
    made = {value for node in left for value in node.outputs}
    shaped = [node for node in left if node.op_type == "Reshape" and node.inputs[1] in made]
    assert dependencies > 6 and len(shaped) >= dependencies - 1
