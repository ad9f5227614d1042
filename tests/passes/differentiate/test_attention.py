"""The residuals of a transformer block: scores computed again where memory is tight, one tensor for a GELU, few at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.halves import joint_of, run_halves
from tests.support.source_models import Weights, norm, saved, source
from tests.support.whole_models import Arrays, operators, samples, spelled
from ttac.passes.differentiate.joint import Joint
from ttac.passes.partition.partition import GraphHalves, partition
from ttac.passes.plan.budget import plan_within
from ttac.passes.plan.decisions import Plan, keep_as, nbytes
from ttac.passes.plan.liveness import bytes_over_time
from ttac.passes.plan.minimum_cut import MOST_TERMS
from ttac.passes.plan.plan import plan_activations
from ttac.spec import SOURCE_STATISTICS

BATCH = 64
TOKENS = 40
BLOCK = """
net (float[N,40,WIDTH] x) => (float[N,5] y) {
  first = LayerNormalization <axis = -1> (x, "first.weight", "first.bias")
  q = MatMul (first, "q.weight")
  k = MatMul (first, "k.weight")
  v = MatMul (first, "v.weight")
  turned = Transpose <perm = [0, 2, 1]> (k)
  scores = MatMul (q, turned)
  scaled = Mul (scores, tenth)
  weights = Softmax <axis = -1> (scaled)
  seen = MatMul (weights, v)
  joined = Add (x, seen)
  second = LayerNormalization <axis = -1> (joined, "second.weight", "second.bias")
  h = MatMul (second, "up.weight")
  u = Div (h, root)
  e = Erf (u)
  a = Add (e, one)
  p = Mul (h, a)
  g = Mul (p, half)
  down = MatMul (g, "down.weight")
  mean = ReduceMean <keepdims = 0> (down, middle)
  y = MatMul (mean, "head.weight")
}
"""
LAYERS = {"q", "k", "v", "h", "down", "y"}


def block_of(folder: Path, width: int = 8) -> tuple[Joint, Arrays]:
    """The joint graph of a transformer block with heads of `width` features, and its feeds, three samples."""
    random = np.random.default_rng(1)
    weights: Weights = {
        **{name: value for stem in ("first", "second") for name, value in norm(stem, width).items() if "running" not in name},
        **{f"{name}.weight": random.normal(0, 0.4, (width, width)).astype(np.float32) for name in "qkv"},
        "up.weight": random.normal(0, 0.4, (width, 4 * width)).astype(np.float32),
        "down.weight": random.normal(0, 0.4, (4 * width, width)).astype(np.float32),
        "head.weight": random.normal(0, 0.4, (width, 5)).astype(np.float32),
        "tenth": np.array(0.1, np.float32), "root": np.array(2**0.5, np.float32), "one": np.array(1, np.float32),
        "half": np.array(0.5, np.float32), "middle": np.array([1]),
    }  # fmt: skip
    path = saved(source(BLOCK.replace("WIDTH", str(width)), weights), folder)
    joint, _, state = joint_of(path, SOURCE_STATISTICS)
    return joint, {"x": samples((TOKENS, width), 3), **state}


def planned(joint: Joint, *, tight: bool) -> Plan:
    graph = joint.model.graph
    return plan_activations(graph, joint.backward, list(graph.inputs), BATCH, tight=tight)


def halves_of(joint: Joint, plan: Plan) -> GraphHalves:
    return partition(joint.model, [joint.logits], joint.gradients, plan)


def gradients(halves: GraphHalves, joint: Joint, feeds: Arrays) -> np.ndarray:
    found = run_halves(halves, feeds)
    return np.concatenate([found[str(gradient.name)].ravel() for gradient in joint.gradients])


def test_scores_are_computed_again_where_memory_is_tight(tmp_path: Path) -> None:
    """The gradients need both factors anyway, so the product can be dropped; layers run once in any case."""
    joint, feeds = block_of(tmp_path)
    loose, tight = planned(joint, tight=False), planned(joint, tight=True)
    assert {row.value: row.how for row in loose.decisions}["weights"] == "dense"
    assert {row.value: row.how for row in tight.decisions}["weights"] == "recompute"
    assert loose.bytes - tight.bytes >= 4 * BATCH * TOKENS * TOKENS and tight.is_exact
    first, second = halves_of(joint, loose), halves_of(joint, tight)
    assert first.backward is not None and second.backward is not None
    assert "Softmax" not in operators(first.backward.graph) and "Softmax" in operators(second.backward.graph)
    assert not LAYERS & {value.name for node in second.backward.graph for value in node.outputs}
    expected = gradients(first, joint, feeds)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradients(second, joint, feeds), expected, rtol=0, atol=1e-6)


def test_a_long_sum_of_products_is_kept(tmp_path: Path) -> None:
    joint, _ = block_of(tmp_path, width=MOST_TERMS + 4)
    ways = {row.value: row.how for row in planned(joint, tight=True).decisions}
    assert ways["weights"] == "dense"


def test_scores_from_rounded_factors_turn_a_gradient_by_little(tmp_path: Path) -> None:
    """Against the same with the scores kept in 8 bits too: one rounding less, not one more."""
    joint, feeds = block_of(tmp_path)
    graph, exact = joint.model.graph, gradients(halves_of(joint, planned(joint, tight=False)), joint, feeds)
    off = {}
    for tight in (False, True):

        def decide(value: ir.Value, _: object) -> object:
            large = value.dtype == ir.DataType.FLOAT and nbytes(value, BATCH) > 1 << 15
            return keep_as(value, "int8" if large else "dense", BATCH)

        plan = plan_activations(graph, joint.backward, list(graph.inputs), BATCH, decide, tight=tight)  # type: ignore[arg-type]
        found = gradients(halves_of(joint, plan), joint, feeds)
        off[tight] = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 0 < off[True] < 0.02 and off[True] < 1.2 * off[False]


def test_of_a_gelu_one_tensor_is_kept_and_four_are_alive(tmp_path: Path) -> None:
    """The kept tensor is the derivative, made before the output; its input, u and two more tensors are alive at most."""
    joint, _ = block_of(tmp_path)
    halves = halves_of(joint, planned(joint, tight=True))
    hidden = 4 * BATCH * TOKENS * 32
    graph = spelled(halves.forward).graph
    kept = [value for value in graph.outputs if value.shape is not None and nbytes(value, BATCH) == hidden]
    (derivative,) = kept
    nodes = list(graph)
    (output,) = [node for node in nodes if node.outputs[0].name == "g"]
    assert nodes.index(derivative.producer()) < nodes.index(output)  # type: ignore[arg-type]
    assert operators(graph).count("Erf") == 1
    around = nodes[nodes.index(_maker(graph, "h")) : nodes.index(output) + 1]
    assert int(bytes_over_time(around, BATCH).max()) == 4 * hidden


def _maker(graph: ir.Graph, name: str) -> ir.Node:
    return next(node for node in graph if node.outputs[0].name == name)


@pytest.mark.parametrize("share", [0.9, 0.0])
def test_a_budget_drops_the_scores_before_it_rounds_values(tmp_path: Path, share: float) -> None:
    """Also those that only the gradients read, such as the derivative of a GELU, or only a recomputed value."""
    joint, _ = block_of(tmp_path)
    graph = joint.model.graph
    dense = int(bytes_over_time(graph, BATCH).max())
    plan, more = plan_within(graph, joint.backward, list(graph.inputs), BATCH, int(share * dense))
    ways = {row.value: row.how for row in plan.decisions}
    assert ways["weights"] == "recompute" and plan.is_exact == more == (share > 0)
    large = {row.value: row.how for row in plan.decisions if row.dense >= 1 << 16 and row.how != "recompute"}
    assert {"v", "e.geluderivative"} <= set(large) and set(large.values()) == {"dense" if share else "int8"}
