"""Plan and partition on random graphs: the halves give the numbers of the whole."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.halves import is_sorted, packing, planned, run_halves
from tests.support.whole_models import (
    SINGLE,
    Arrays,
    samples,
    spelled,
)
from ttac.passes.differentiate.joint import Joint, differentiate_loss
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import DOMAIN
from ttac.passes.graph.execute import run
from ttac.passes.graph.state import StateTensor
from ttac.passes.partition.partition import partition
from ttac.passes.plan.decisions import nbytes

Recipe = list[tuple[str, int, int]]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["Add", "Mul", "Scale", "Shift", "Relu", "Tanh", "Sigmoid", "Conv", "Norm", "Sub", "Clip"]),
        st.integers(0, 30),
        st.integers(0, 30),
    ),
    min_size=2,
    max_size=14,
)


CHANNELS = 4


def random_joint(recipe: Recipe) -> tuple[Joint, Arrays]:
    """A joint graph of a random net on [N, 4, 10, 10], and its feeds; every third value is read again later."""
    random = np.random.default_rng(len(recipe))
    x = ir.val("x", SINGLE, ["N", CHANNELS, 10, 10])
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="random")
    op = Builder(graph, "source")
    values: list[ir.Value] = [x]
    parameters: list[StateTensor] = []

    def parameter() -> ir.Value:
        value = ir.val(f"p{len(parameters)}", SINGLE, [CHANNELS])
        graph.inputs.append(value)
        initial = random.uniform(0.5, 1.5, CHANNELS).astype(np.float32)
        parameters.append(StateTensor(name=str(value.name), role="parameter", initial=initial, value=value))
        return value

    for kind, a, b in recipe:
        first, second = values[-1 - a % min(3, len(values))], values[b % len(values)]
        if kind in ("Add", "Sub", "Mul"):
            made = getattr(op, kind)(first, op.Sigmoid(second) if kind == "Mul" else second)
        elif kind in ("Scale", "Shift"):
            vector = op.Unsqueeze(parameter(), [1, 2])
            made = op.Mul(first, vector) if kind == "Scale" else op.Add(first, vector)
        elif kind == "Conv":
            made = op.Conv(
                first, random.normal(0, 0.4, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32), pads=[1, 1, 1, 1]
            )
        elif kind == "Norm":
            mean, var = op.Moments(first)
            made = op.BatchNormalization(first, parameter(), parameter(), mean, var, epsilon=1e-3)
        elif kind == "Clip":
            made = op.Clip(first, -1.0, 1.0)
        else:
            made = getattr(op, kind)(first)
        values.append(made)
    logits = op.Squeeze(op.GlobalAveragePool(op.Mul(values[-1], op.Unsqueeze(parameter(), [1, 2]))), [2, 3])
    graph.outputs.append(logits)
    model = ir.Model(graph, ir_version=8)
    joint = differentiate_loss(model, logits, "entropy", tuple(parameters))
    return joint, {"x": samples((CHANNELS, 10, 10), 3), **{p.name: p.initial for p in parameters}}


def wanted(joint: Joint) -> list[str]:
    return [str(joint.logits.name), *(str(gradient.name) for gradient in joint.gradients)]


def assert_close(found: Arrays, expected: Arrays, names: list[str], bound: float = 1e-5) -> None:
    for name in names:
        scale = max(1e-3, float(np.abs(expected[name]).max()))
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=bound * scale)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(STEPS, st.booleans())
def test_the_halves_of_any_graph_give_what_the_whole_gives(recipe: Recipe, packs: bool) -> None:
    joint, feeds = random_joint(recipe)
    graph = joint.model.graph
    plan = planned(joint, 64, packing(64) if packs else None)
    halves = partition(joint.model, [joint.logits], joint.gradients, plan)
    assert halves.backward is not None and plan.is_exact
    assert is_sorted(halves.forward.graph) and is_sorted(halves.backward.graph)
    read = {id(value) for value in graph.inputs}
    late = set(halves.backward.graph)
    assert plan.bytes <= sum(
        nbytes(value, 64)
        for value in {value for node in joint.backward for value in node.inputs if value is not None}
        if value.producer() is not None and value.producer() not in set(joint.backward) and id(value) not in read
    ) + sum(nbytes(value, 64) for node in joint.backward for value in node.outputs if value.name in plan.residuals)
    assert late
    found = run_halves(halves, feeds)
    graph.outputs[:] = [joint.logits, *joint.gradients]
    assert_close(found, run(spelled(joint.model), feeds), wanted(joint))


def from_int8(found: Arrays, name: str) -> np.ndarray:
    """The value of three tensors of the codec, rows first."""
    values, scale, zero = (found[f"{name}.int8{part}"] for part in ("", ".scale", ".zero"))
    return (values.astype(np.float32) - zero[:, None].astype(np.float32)) * scale[:, None]


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(STEPS)
def test_int8_residuals_give_the_gradients_of_rounded_values(recipe: Recipe) -> None:
    """Nothing but the rounding comes between: the exact backward, given the rounded values, finds the same gradients.

    And the rounding is as small as the codec says.
    """
    joint, feeds = random_joint(recipe)
    plan = planned(joint, 512, packing(512, "int8"))
    rounded, exact = (partition(joint.model, [joint.logits], joint.gradients, p) for p in (plan, plan.exactly()))
    assert rounded.backward is not None and exact.backward is not None
    assert is_sorted(rounded.forward.graph) and is_sorted(rounded.backward.graph)
    found, expected = run_halves(rounded, feeds), run_halves(exact, feeds)
    given_back = dict(expected)
    for row in plan.decisions:
        if row.how == "int8":
            true = expected[row.value]
            rows = true.reshape(len(found[f"{row.value}.int8"]), -1)
            back = from_int8(found, row.value)
            span = np.maximum(rows.max(1), 0) - np.minimum(rows.min(1), 0)
            assert (np.abs(back - rows).max(1) <= span / 510 * 1.001 + 1e-6).all()
            given_back[row.value] = back.reshape(true.shape)
        elif row.how == "bits":
            assert found[f"{row.value}.bits"].dtype == np.uint8
    again = run(spelled(exact.backward), {**feeds, **given_back})
    assert_close(found, {**expected, **again}, wanted(joint))


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(STEPS)
def test_int8_residuals_turn_a_gradient_by_little(recipe: Recipe) -> None:
    joint, feeds = random_joint([("Conv", 0, 0), *recipe, ("Norm", 0, 0), ("Relu", 0, 0), ("Conv", 0, 0)])
    plans = [planned(joint, 512, decide) for decide in (None, packing(512, "int8"))]
    assert "int8" in {row.how for row in plans[1].decisions}
    exact, rounded = (run_halves(partition(joint.model, [joint.logits], joint.gradients, p), feeds) for p in plans)
    first, second = (
        np.concatenate([found[str(gradient.name)].ravel() for gradient in joint.gradients])
        for found in (exact, rounded)
    )
    assert np.linalg.norm(first - second) <= 0.02 * max(float(np.linalg.norm(first)), 1e-3)
    np.testing.assert_allclose(rounded[str(joint.logits.name)], exact[str(joint.logits.name)], rtol=1e-5, atol=1e-5)
