"""The residuals of the forward: the plan, masks as bits, partition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.halves import joint_of, packing, planned, run_halves
from tests.support.source_models import Weights, norm, saved, source
from tests.support.tiny_bundles import read
from tests.support.whole_models import (
    MODELS,
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
from ttac.passes.differentiate.joint import Joint
from ttac.passes.graph.execute import run
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
    # A derivative is no step function: it follows from the restored value.
    assert ways["s.mul"] == "recompute"


# --- plan and partition on random graphs ------------------------------------------------------------------------------


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
def test_the_verification_states_the_error_of_int8_residuals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("resnext", "densenet", "transformer"):
        bundle = compiled_with(packing(32, "int8"), MODELS[name], tmp_path, monkeypatch)
        shape = [int(size) for size in normal(MODELS[name]).graph.inputs[0].shape[1:]]  # type: ignore[index, union-attr]
        values = executed(bundle, samples(shape))
        assert [key for key in values if key.endswith(".int8")]
        error = float(gradient_errors(values, golden_gradients(name))["all"])
        assert 0.0 < error < 0.05 and 0.0 < read(bundle)["verified"]["residuals"] < 0.05, name
