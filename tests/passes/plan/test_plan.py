"""What the forward keeps for the backward: the plan, masks as bits, partition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.halves import is_sorted, joint_of, packing, planned, run_halves
from tests.support.source_models import Weights, norm, saved, source
from tests.support.tiny_bundles import read
from tests.support.whole_models import (
    MODELS,
    SINGLE,
    Arrays,
    compiled,
    executed,
    golden_gradients,
    gradient_errors,
    normal,
    operators,
    samples,
    sites_of,
    spelled,
)
from ttac import build_graphs as assemble
from ttac.passes.adapt.adapt_norms import adapt_norms
from ttac.passes.differentiate.joint import Joint, differentiate_loss
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import DOMAIN
from ttac.passes.graph.execute import run
from ttac.passes.graph.state import StateTensor
from ttac.passes.partition.partition import partition
from ttac.passes.plan.codecs import CODECS
from ttac.passes.plan.decisions import SMALL_BYTES, Decide, Decision, Plan, nbytes
from ttac.passes.plan.plan import plan_activations
from ttac.spec import BATCH_STATISTICS

# --- plan -------------------------------------------------------------------------------------------------------------


def values_of(joint: Joint) -> dict[str, ir.Value]:
    return {str(value.name): value for node in joint.model.graph for value in node.outputs}


CHAIN = """
net (float[N,8,16,16] x) => (float[N,5] y) {
  c = Conv (x, "conv.weight")
  b = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  s = Sigmoid (b)
  h = Mul (s, half)
  d = Conv (h, "next.weight")
  e = BatchNormalization (d, "last.weight", "last.bias", "last.running_mean", "last.running_var")
  r = Relu (e)
  p = GlobalAveragePool (r)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, "fc.weight", "fc.bias")
}
"""
CHAIN_WEIGHTS: Weights = {
    "conv.weight": (8, 8, 1, 1), "next.weight": (8, 8, 1, 1), **norm("bn", 8), **norm("last", 8), "fc.weight": (5, 8),
    "fc.bias": (5,), "half": np.array(0.5, np.float32),
}  # fmt: skip


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    return saved(source(CHAIN, CHAIN_WEIGHTS), tmp_path)


def test_what_is_cheap_is_computed_again(chain: Path) -> None:
    """Of the norm's input, its output and the sigmoid only the input is kept: the others follow from it.

    That the norm's output reads a parameter must not tie it to the forward: parameters are free in both halves.
    """
    joint, outputs, _ = joint_of(chain)
    plan = planned(joint, 32)
    ways = {row.value: row.how for row in plan.decisions}
    assert {
        name for name, how in ways.items() if how == "dense" and nbytes(values_of(joint)[name], 32) > SMALL_BYTES
    } == {
        "c",
        "d",
    }
    assert ways["s.mul"] == "recompute"  # s*(1 - s), which the gradient of the sigmoid reads
    halves = partition(joint.model, outputs, joint.gradients, plan)
    assert halves.backward is not None
    assert {"BatchNormalization", "Sigmoid"} <= set(operators(halves.backward.graph))
    assert {"bn.scale", "bn.bias"} <= {value.name for value in halves.backward.graph.inputs}


@pytest.mark.parametrize("name", ["signal", "mobilenet_v2", "transformer"])
def test_a_convolution_or_product_runs_once_however_small(name: str) -> None:
    joint, outputs, _ = joint_of(MODELS[name])
    costly = {node.name for node in normal(MODELS[name]).graph if node.op_type in ("Conv", "Gemm", "MatMul")}
    halves = partition(joint.model, outputs, joint.gradients, planned(joint, 1))
    assert halves.backward is not None
    assert costly <= {node.name for node in halves.forward.graph}
    assert not costly & {node.name for node in halves.backward.graph}


def test_a_mask_is_kept_where_that_is_less(tmp_path: Path) -> None:
    """The sign of a sum of two branches: a byte per element, or a bit where memory is short; an input would be four."""
    text = CHAIN.replace("h = Mul (s, half)", 'g = Conv (x, "side.weight") a = Add (s, g) h = Relu (a)')
    joint, outputs, state = joint_of(saved(source(text, {**CHAIN_WEIGHTS, "side.weight": (8, 8, 1, 1)}), tmp_path))
    loose, tight = planned(joint, 64), planned(joint, 64, packing(64))
    (mask,) = [row for row in loose.decisions if row.because.startswith("a mask")]
    (bits,) = [row for row in tight.decisions if row.how == "bits"]
    assert mask.value == bits.value and bits.bytes * 8 == mask.bytes == 64 * 8 * 16 * 16
    assert [row.value for row in tight.decisions] == [row.value for row in loose.decisions]
    assert tight.bytes == loose.bytes - mask.bytes * 7 // 8 and tight.is_exact and loose.is_exact
    feeds = {"x": samples((8, 16, 16), 3), **state}
    first, second = (
        run_halves(partition(joint.model, outputs, joint.gradients, plan), feeds) for plan in (loose, tight)
    )
    for gradient in joint.gradients:
        np.testing.assert_array_equal(first[str(gradient.name)], second[str(gradient.name)])
    assert second[f"{mask.value}.bits"].shape == (3, 8 * 16 * 16 // 8)


def tensors_of(row: Decision) -> tuple[str, ...]:
    """Names under which the value of a row crosses."""
    if row.how in ("dense", "recompute"):
        return (row.value,) if row.how == "dense" else ()
    return tuple(".".join(word for word in (row.value, row.how, part) if word) for part in ("", *CODECS[row.how].parts))


@pytest.mark.parametrize("name", ["resnext", "wide_resnet", "densenet", "transformer"])
@pytest.mark.parametrize("floats", [None, "dense", "int8"])
def test_the_plan_counts_what_the_forward_hands_over(name: str, floats: str | None) -> None:
    joint, outputs, state = joint_of(MODELS[name])
    plan = planned(joint, 64, None if floats is None else packing(64, floats))
    halves = partition(joint.model, outputs, joint.gradients, plan)
    shape = [int(size) for size in joint.model.graph.inputs[0].shape[1:]]  # type: ignore[index, union-attr]
    found = run(spelled(halves.forward), {"x": samples(shape, 64), **state})
    ways = {row.how for row in plan.decisions}
    assert ("bits" in ways) == (floats is not None and name != "transformer")
    assert ("int8" in ways) == (floats == "int8") and plan.is_exact == (floats != "int8")
    for row in plan.decisions:
        if row.how != "recompute":
            size = sum(found[tensor].nbytes for tensor in tensors_of(row))
            # A sample's bits begin on a byte of their own.
            assert row.bytes <= size <= row.bytes + (64 if row.how == "bits" else 1), row
            assert row.dense == nbytes(values_of(joint)[row.value], 64)
    assert set(halves.residuals) == {tensor for row in plan.decisions for tensor in tensors_of(row)}
    assert plan.bytes == sum(row.bytes for row in plan.decisions) <= plan.dense
    assert [row.bytes for row in plan.largest()] == sorted((row.bytes for row in plan.decisions), reverse=True)[:5]
    assert (
        not {row.how for row in plan.exactly().decisions} - {"dense", "recompute"}
        and plan.exactly().bytes <= plan.dense
    )


def test_a_mask_is_kept_where_its_value_loses_digits(chain: Path) -> None:
    """Of `d` and the sign of the Relu behind it one is enough, unless `d` comes back changed: then a sign may flip."""
    joint, _, _ = joint_of(chain)
    exact, lossy = planned(joint, 64), planned(joint, 64, packing(64, "int8"))
    ways = {row.value: row.how for row in lossy.decisions}
    assert ways["c"] == ways["d"] == "int8" and "bits" not in {row.how for row in exact.decisions}
    (bits,) = [row for row in lossy.decisions if row.how == "bits"]
    assert values_of(joint)[bits.value].dtype == ir.DataType.BOOL and bits.bytes == 64 * 8 * 16 * 16 // 8
    # A continuous function flips no sign: the backward computes the value again from the decoded tensor.
    assert ways["s.mul"] == "recompute"


# --- plan and partition on random graphs ------------------------------------------------------------------------------

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
    """The value that three tensors of the codec stand for, rows first."""
    values, scale, zero = (found[f"{name}.int8{part}"] for part in ("", ".scale", ".zero"))
    return (values.astype(np.float32) - zero[:, None].astype(np.float32)) * scale[:, None]


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(STEPS)
def test_a_backward_of_int8_residuals_is_that_of_the_rounded_values(recipe: Recipe) -> None:
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


def test_no_gradients_no_backward(chain: Path) -> None:
    model = normal(chain)
    adapt_norms(model, sites_of(model), BATCH_STATISTICS, {}, trains=False)
    joint = Joint(model=model, logits=model.graph.outputs[0])
    halves = partition(model, [joint.logits], (), Plan(4))
    assert halves.backward is None and halves.forward.graph.inputs[0].name == "x"


def test_a_plan_that_leaves_something_out_of_reach_is_refused(chain: Path) -> None:
    joint, outputs, _ = joint_of(chain)
    plan = planned(joint, 8)
    for name in plan.residuals:
        if name == "c":
            continue
        lacking = replace(plan, decisions=tuple(row for row in plan.decisions if row.value != name))
        halves = partition(joint.model, outputs, joint.gradients, lacking)
        assert halves.backward is not None  # it is computed again, at whatever price
    graph = joint.model.graph
    graph.inputs.remove(graph.inputs[0])
    with pytest.raises(ValueError):
        partition(joint.model, outputs, joint.gradients, replace(plan, decisions=()))


# --- the whole of them, with packed masks -----------------------------------------------------------------------------


def compiled_with(decide: Decide, path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose residuals are kept as `decide` says, whatever the budget."""
    monkeypatch.setattr(assemble, "plan_activations", lambda *given: plan_activations(*given, decide))
    return compiled(path, folder, batch=32)


@pytest.mark.slow
def test_packed_masks_change_no_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("resnext", "wide_resnet", "densenet"):
        bundle = compiled_with(packing(32), MODELS[name], tmp_path, monkeypatch)
        values = executed(bundle, samples((3, 16, 16)))
        assert [key for key in values if key.endswith(".bits")]
        assert max(gradient_errors(values, golden_gradients(name)).values()) <= 1e-5
        assert read(bundle)["verified"]["residuals"] is None


@pytest.mark.slow
def test_int8_residuals_change_gradients_by_what_the_verification_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("resnext", "densenet", "transformer"):
        bundle = compiled_with(packing(32, "int8"), MODELS[name], tmp_path, monkeypatch)
        shape = [int(size) for size in normal(MODELS[name]).graph.inputs[0].shape[1:]]  # type: ignore[index, union-attr]
        values = executed(bundle, samples(shape))
        assert [key for key in values if key.endswith(".int8")]
        error = float(gradient_errors(values, golden_gradients(name))["all"])
        assert 0.0 < error < 0.05 and 0.0 < read(bundle)["verified"]["residuals"] < 0.05, name
