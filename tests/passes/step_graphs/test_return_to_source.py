"""Predictions with running averages: the decision between source and averages restated in NumPy, and the reach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support.whole_models import normal, sites_of, spelled
from ttac.passes.graph.execute import run
from ttac.passes.step_graphs.return_to_source import FAR, IN_REACH
from ttac.passes.step_graphs.window import predicted, running_model

CHANNELS, EPS = 3, 1e-5
Arrays = dict[str, np.ndarray]
OTHER = "norm1", "norm2"


def weights() -> Arrays:
    random = np.random.default_rng(3)
    norms = {
        f"{name}.{role}": (low + random.random(CHANNELS)).astype(np.float32)
        for name in OTHER
        for role, low in (("scale", 0.5), ("bias", -0.5), ("mean", -0.5), ("var", 0.5))
    }
    return {**norms, "conv": random.standard_normal((CHANNELS, CHANNELS, 1, 1)).astype(np.float32)}


def net(folder: Path) -> Path:
    """Return the file of a net: norm, Relu, Conv, norm, average over the pixels."""
    roles = ("scale", "bias", "mean", "var")
    nodes = [
        helper.make_node(
            "BatchNormalization", ["x", *(f"norm1.{role}" for role in roles)], ["a"], "norm1", epsilon=EPS
        ),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "conv"], ["c"], "conv"),
        helper.make_node(
            "BatchNormalization", ["c", *(f"norm2.{role}" for role in roles)], ["d"], "norm2", epsilon=EPS
        ),
        helper.make_node("Relu", ["d"], ["e"], "relu2"),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], "pool"),
        helper.make_node("Flatten", ["f"], ["y"], "flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CHANNELS])],
        [numpy_helper.from_array(array, name) for name, array in weights().items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def running(path: Path, *, returns: bool) -> ir.Model:
    model = normal(path)
    return spelled(running_model(model, sites_of(model), [], returns=returns))


def averages(seed: int) -> Arrays:
    """Return averages of both norms, at a random distance from the source."""
    random, known = np.random.default_rng(seed), weights()
    size = 2.0 ** random.uniform(-4, 0)
    moved = {}
    for name in OTHER:
        deviation = np.sqrt(known[f"{name}.var"])
        moved[f"{name}.mean"] = known[f"{name}.mean"] + size * deviation * random.standard_normal(CHANNELS)
        moved[f"{name}.var"] = (deviation * np.exp(size * random.standard_normal(CHANNELS) / 2)) ** 2
    return {name: array.astype(np.float32) for name, array in moved.items()}


def source() -> Arrays:
    return {name: array for name, array in weights().items() if name.endswith(("mean", "var"))}


def distances(x: np.ndarray, used: Arrays) -> list[float]:
    """Return the distance of the batch from the statistics `used` in each norm, in a pass with these statistics."""
    known, found, value = weights(), list[float](), x.astype(np.float64)
    for name in OTHER:
        middle, deviation = known[f"{name}.mean"], np.sqrt(known[f"{name}.var"] + EPS)
        mean, spread = value.mean((0, 2, 3)), np.sqrt(value.var((0, 2, 3)) + EPS)
        other, wide = used[f"{name}.mean"], np.sqrt(used[f"{name}.var"] + EPS)
        m, n = (np.clip((v - middle) / deviation, -2, 2) for v in (mean, other))
        s, t = (np.minimum(v / deviation, 2) for v in (spread, wide))
        found.append(float(np.sqrt(((m - n) ** 2 + (s - t) ** 2).mean())))
        shape = (1, CHANNELS, 1, 1)
        value = (value - other.reshape(shape)) / wide.reshape(shape)
        value = value * known[f"{name}.scale"].reshape(shape) + known[f"{name}.bias"].reshape(shape)
        value = np.einsum("oi,nihw->nohw", known["conv"][..., 0, 0], np.maximum(value, 0))
    return found


def test_the_first_two_norms_decide(tmp_path: Path) -> None:
    """On random batches and averages; some are decided otherwise than the first norm alone would."""
    path, known = net(tmp_path), weights()
    returning, plain = running(path, returns=True), running(path, returns=False)
    decisions, first_alone = list[bool](), list[bool]()
    for seed in range(40):
        random, used = np.random.default_rng(100 + seed), averages(seed)
        x = known["norm1.mean"].reshape(1, -1, 1, 1) + random.standard_normal((8, CHANNELS, 4, 4))
        x = (x + random.uniform(0, 0.5)).astype(np.float32)
        outputs = run(returning, {"x": x, **used})
        to_source, to_averages = distances(x, source()), distances(x, used)
        if abs(sum(to_source) - sum(to_averages)) < 1e-4:
            continue
        nearer = sum(to_source) < sum(to_averages)
        expected = run(plain, {"x": x, **(source() if nearer else used)})
        np.testing.assert_allclose(outputs[predicted("y")], expected[predicted("y")], rtol=1e-5, atol=1e-6)
        assert float(outputs[IN_REACH]) == 1
        decisions.append(nearer)
        first_alone.append(to_source[0] < to_averages[0])
    assert len(decisions) > 30 and 5 <= sum(decisions) <= len(decisions) - 5
    assert decisions != first_alone


@pytest.mark.parametrize("part", [0.9, 1.1])
def test_a_batch_beyond_the_reach_is_named(part: float, tmp_path: Path) -> None:
    """A constant offset of all channels moves the means alone; the deviation of the batch is that of the source."""
    known = weights()
    noise = np.random.default_rng(0).standard_normal((8, CHANNELS, 4, 4))
    noise = (noise - noise.mean((0, 2, 3), keepdims=True)) / noise.std((0, 2, 3), keepdims=True)
    mean, deviation = (v.reshape(1, -1, 1, 1) for v in (known["norm1.mean"], np.sqrt(known["norm1.var"] + EPS)))
    x = (mean + deviation * (noise + part * FAR)).astype(np.float32)
    assert float(run(running(net(tmp_path), returns=True), {"x": x, **averages(0)})[IN_REACH]) == (part < 1)


@pytest.mark.parametrize("value", [1e10, 1e25, np.nan])
def test_broken_numbers_are_beyond_the_reach(value: float, tmp_path: Path) -> None:
    x = np.zeros((4, CHANNELS, 4, 4), np.float32)
    x[0, 0, 1, 1] = value
    assert float(run(running(net(tmp_path), returns=True), {"x": x, **averages(0)})[IN_REACH]) == 0


def test_a_model_that_does_not_return_has_no_further_output(tmp_path: Path) -> None:
    assert [value.name for value in running(net(tmp_path), returns=False).graph.outputs] == [predicted("y")]
