"""The losses and the methods on dense and binary heads, and the head in the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file

import ttac
from tests.support.head_cases import (
    BATCH,
    GOLDEN,
    HEADS,
    RUNS,
    SHAPES,
    bundle,
    golden,
    inputs,
    model,
    seed_of,
    worst,
    written,
)
from tests.support.tiny_bundles import ema, read
from tests.support.whole_models import Arrays, compiled, normal, samples, state_of
from ttac.errors import VerificationError
from ttac.passes.differentiate.joint import differentiate_loss
from ttac.passes.differentiate.losses import mean, total
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import DOMAIN
from ttac.passes.graph.execute import run as executed
from ttac.passes.graph.expand import expand_all
from ttac.passes.graph.state import StateTensor
from ttac.passes.norms.norm_sites import find_norms
from ttac.passes.plan.plan import plan_activations
from ttac.passes.step_graphs.last_stage import last_stage
from ttac.runtime.manifest import parse_manifest
from ttac.runtime.program.words import Run as RunWord
from ttac.runtime.records import HeadSpec

# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "run"), RUNS)
def test_three_steps_equal_pytorch(kind: str, run: str, tmp_path: Path) -> None:
    assert worst(kind, run, tmp_path) < 2e-5


@pytest.mark.parametrize("kind", ["group", "binary"])
def test_the_anchor_makes_a_difference(kind: str) -> None:
    free, held = golden(kind, "eta"), golden(kind, "eata")
    assert max(float(np.abs(free[name] - held[name]).max()) for name in held if name != "logits") > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "run"), RUNS)
def test_the_golden_run_is_that_of_the_peer(kind: str, run: str) -> None:
    pytest.importorskip("torch")
    from tests.golden.make.head_nets import build, trajectory

    given = inputs(seed_of(kind))
    found, _ = trajectory(run, kind, build(kind, seed_of(kind)), given)
    expected = load_file(GOLDEN / f"heads_{kind}.safetensors")
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4)


# --- losses -----------------------------------------------------------------------------------------------------------

EXTREMES = np.array(
    [
        [0, 0, 0, 0, 0],
        [1e4, 1e4, 1e4, 1e4, 1e4],
        [-1e4, -1e4, -1e4, -1e4, -1e4],
        [1e4, -1e4, 0, 5, -5],
        [0, 1e4, 0, 0, 0],
        [50, 0, 0, 0, 0],
        [1e4, 1e4, -1e4, 0, 1],
        [88.8, -103.9, 17.9, 18.1, 1e-30],
    ],
    np.float32,
)


@pytest.mark.parametrize("binary", [False, True])
def test_extreme_scores(binary: bool, tmp_path: Path) -> None:
    """Entropies and gradients of scores up to 1e4 are finite, and those of float64."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="graph")
    z = ir.val("z", ir.DataType.FLOAT, ["N", 5])
    graph.inputs.append(z)
    op = Builder(graph, "test")
    made = op.BinaryEntropy(z) if binary else op.Entropy(z, axis=1)[0]
    one = op.Add(op.Mul(made, 0.0), 1.0)
    derivative = (
        op.BinaryEntropyGradient(one, z) if binary else op.EntropyGradient(one, z, *made.producer().outputs, axis=1)
    )
    graph.outputs.extend([made, derivative])
    names = [str(made.name), str(derivative.name)]
    whole = ir.Model(graph, ir_version=8)
    expand_all(whole)
    found = executed(whole, {"z": EXTREMES})
    exact = EXTREMES.astype(np.float64)
    expected = binary_by_definition(exact) if binary else by_definition(exact)
    for name, value in zip(names, expected, strict=True):
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=2e-6)


def by_definition(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """H [n] and dH/dz [n, c], with 0 log 0 = 0."""
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    log_p = np.log(np.maximum(p, 1e-300))
    found = -(p * log_p).sum(1)
    return found, -p * (log_p + found[:, None])


def binary_by_definition(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = 1 / (1 + np.exp(np.minimum(-x, 700)))
    other = 1 / (1 + np.exp(np.minimum(x, 700)))
    found = -(s * np.log(np.maximum(s, 1e-300)) + other * np.log(np.maximum(other, 1e-300)))
    return found, -x * s * other


def test_a_mean_of_many_does_not_drift() -> None:
    """Two million equal numbers: added one after the other in float32, their mean is 1.7e-3 off."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="graph")
    x = ir.val("x", ir.DataType.FLOAT, ["N", 1024, 2048])
    graph.inputs.append(x)
    op = Builder(graph, "test")
    graph.outputs.extend([mean(op, x, "mean"), total(op, x, "total")])
    found = executed(ir.Model(graph, ir_version=8), {"x": np.full((1, 1024, 2048), 0.7123, np.float32)})
    assert found["mean"] == pytest.approx(0.7123, rel=2e-6)
    assert found["total"] == pytest.approx(0.7123 * 2**21, rel=2e-6)


def test_a_dense_loss_keeps_the_scores_alone(tmp_path: Path) -> None:
    """Of the tensors as large as the scores, the backward reads them and nothing else; written out, it reads two."""
    path = written(*HEADS["dense"][:2], SHAPES["dense"], tmp_path)
    found = normal(path)
    y, scale = found.graph.outputs[0], ir.val("scale", ir.DataType.FLOAT, [4])
    norm_node = next(node for node in found.graph if node.op_type == "BatchNormalization")
    norm_node.replace_input_with(1, scale)
    found.graph.inputs.append(scale)
    parameter = StateTensor(name="scale", role="parameter", initial=np.ones(4, np.float32), value=scale)
    joint = differentiate_loss(found, y, "entropy", (parameter,))
    plan = plan_activations(found.graph, joint.backward, list(found.graph.inputs), 4096)
    sizes = {str(v.name): tuple(v.shape)[1:] for node in found.graph for v in node.outputs if v.shape is not None}
    assert [row.value for row in plan.decisions if row.bytes and sizes[row.value] == (6, 8, 8)] == ["y"]


# --- methods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["eata", "sar"])
def test_a_dense_softmax_is_seen_through(method: str, tmp_path: Path) -> None:
    """With and without its last Softmax, and channels last, the net learns the same."""
    ends = {
        "bare": ('y = Conv (r, "w")', "6,8,8"),
        "softmax": ('z = Conv (r, "w") y = Softmax <axis = 1> (z)', "6,8,8"),
        "last": ('z = Conv (r, "w") t = Transpose <perm = [0,2,3,1]> (z) y = Softmax <axis = 3> (t)', "8,8,6"),
    }
    settings = {"lr": 0.05, "margin": 0.9, **({"redundancy": 0.95} if method == "eata" else {})}
    states: list[Arrays] = []
    for name, (end, shape) in ends.items():
        (tmp_path / name).mkdir()
        path = written(end, {"w": (6, 4, 1, 1)}, shape, tmp_path / name)
        adapter = ttac.load(compiled(path, tmp_path / name, method=method, batch=4, settings=settings), threads=1)
        for seed in range(2):
            adapter.step(samples((3, 8, 8), 4, seed))
            assert 0 < adapter.stats["selected"] < 256
        states.append(state_of(adapter))
    for other in states[1:]:
        for name, value in states[0].items():
            np.testing.assert_allclose(other[name], value, atol=2e-6)


def test_selected_pixels_are_counted_by_hand(tmp_path: Path) -> None:
    adapter = ttac.load(bundle("group", "eta", tmp_path), threads=1)
    average, margin = np.zeros(4), 0.6 * np.log(4)
    for x in inputs(seed_of("group"))["x"][:2]:
        z = adapter.step(x).astype(np.float64)
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        pixels = p.transpose(0, 2, 3, 1).reshape(-1, 4)
        lengths = np.linalg.norm(pixels, axis=1) * np.linalg.norm(average)
        cosine = pixels @ average / np.maximum(lengths, 1e-8)
        chosen = (-(pixels * np.log(pixels)).sum(1) < margin) & (np.abs(cosine) < 0.7)
        assert adapter.stats["selected"] == chosen.sum() > 0
        now = pixels[chosen].mean(0)
        average = 0.9 * average + 0.1 * now if average.any() else now
        np.testing.assert_allclose(state_of(adapter)["probabilities.average"], average, atol=1e-6)


def test_two_classes_are_not_all_redundant(tmp_path: Path) -> None:
    """By the default for two classes, `eata` goes on learning after its first step."""
    path = compiled(model("binary"), tmp_path, method="eata", batch=BATCH, norms="keep", settings={"margin": 0.9})
    adapter = ttac.load(path, threads=1)
    chosen = []
    for x in inputs(seed_of("binary"))["x"]:
        adapter.step(x)
        chosen.append(adapter.stats["selected"])
    assert all(chosen), chosen


@pytest.mark.parametrize(("kind", "run"), [("group", "sar"), ("group", "eta"), ("binary", "sar"), ("binary", "eta")])
def test_nothing_reliable_changes_nothing(kind: str, run: str, tmp_path: Path) -> None:
    adapter = ttac.load(bundle(kind, run, tmp_path, margin=0.0), threads=1)
    before = state_of(adapter)
    adapter.step(inputs(seed_of(kind))["x"][0])
    after = state_of(adapter)
    assert adapter.stats["selected"] == 0 and all(np.array_equal(after[name], before[name]) for name in before)


def test_a_second_forward_keeps_the_first_logits(tmp_path: Path) -> None:
    """The backward reads the scores of each pass; the step returns the logits of the first."""
    adapter = ttac.load(bundle("group", "sar", tmp_path, rho=1.0), threads=1)
    forwards: list[Any] = []

    def walk(words: Any) -> None:
        for word in words:
            if isinstance(word, RunWord) and word.graph == "forward":
                forwards.append(set(word.fetch))
            for branch in ("then", "otherwise"):
                walk(getattr(word, branch, ()))

    walk(adapter._executor.form.programs["step"])
    assert len(forwards) == 2 and "logits" in forwards[0] and "logits" not in forwards[1]
    x = inputs(seed_of("group"))["x"][0]
    expected = adapter.predict(x)
    np.testing.assert_array_equal(adapter.step(x), expected)
    assert adapter.stats["confirmed"] > 0


def test_the_last_stage_of_a_decoder() -> None:
    """The layers inside the skip connection are not part of the last stage."""
    found = normal(model("group"))
    assert last_stage(found, find_norms(found).sites) == {"norm4", "norm5"}


@pytest.mark.parametrize("size", [1, 3])
def test_smaller_batches(size: int, tmp_path: Path) -> None:
    """The last batch of a stream: the rows of a whole one, and a step on fewer."""
    adapter = ttac.load(bundle("group", "sar", tmp_path), threads=1)
    x = inputs(seed_of("group"))["x"][0]
    whole = adapter.predict(x)
    np.testing.assert_allclose(adapter.step(x[:size]), whole[:size], atol=1e-5)
    assert adapter.stats["rejected"] == 0 and adapter.stats["selected"] > 0


# --- the report of a stream -------------------------------------------------------------------------------------------


# --- the manifest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({"output": "logits", "kind": "depth", "axis": 1, "values": "logits"}, "head.kind"),
        ({"output": "logits", "kind": "dense", "axis": 1, "values": "scores"}, "head.values"),
        ({"output": "logits", "kind": "dense", "axis": 2, "values": "logits"}, "head.axis"),
        ({"output": "logits", "kind": "dense", "axis": 0, "values": "logits"}, "head.axis"),
        ({"output": "logits", "kind": "classes", "axis": None, "values": "logits"}, "head.axis"),
        ({"output": "logits", "kind": "classes", "axis": True, "values": "logits"}, "head.axis"),
        ({"output": "logits", "kind": "classes", "axis": 1}, "head"),
        ({"output": "logits", "kind": "classes", "axis": 1, "values": "logits", "more": 1}, "head"),
        ({"output": "y", "kind": "classes", "axis": 1, "values": "logits"}, "head.output"),
        ("classes", "head"),
    ],
)
def test_a_damaged_head_is_refused(head: Any, said: str, tmp_path: Path) -> None:
    manifest = read(ema(tmp_path / "tiny.ttac"))
    assert parse_manifest(manifest).head == HeadSpec(kind="classes", axis=1, values="logits", output="logits")
    with pytest.raises(VerificationError, match=f"`{said}`"):
        parse_manifest({**manifest, "head": head})


def test_a_manifest_without_a_head_is_refused(tmp_path: Path) -> None:
    manifest = read(ema(tmp_path / "tiny.ttac"))
    del manifest["head"]
    with pytest.raises(VerificationError, match="missing keys: `head`"):
        parse_manifest(manifest)
