"""The rooms behind the norms, one by one: adapt, insert, losses, optimizers, emit, verify."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file

import ttac
from tests.support.source_models import CONV_NORM, CONV_NORM_WEIGHTS, Weights, saved, source
from tests.support.whole_models import MODELS, SINGLE, Arrays, compiled, normal, operators, samples, sites_of, spelled
from ttac import finish
from ttac.errors import VerificationError
from ttac.passes.adapt.adapt_norms import adapt_norms
from ttac.passes.differentiate.joint import differentiate_loss
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import DOMAIN
from ttac.passes.graph.execute import Executable, run
from ttac.passes.graph.expand import expand_all
from ttac.passes.graph.graph_files import INLINE_BYTES, WEIGHTS, write_graphs
from ttac.passes.graph.state import StateTensor
from ttac.passes.norms.insert import insert_norms, unit_filters
from ttac.passes.norms.norm_sites import find_norms
from ttac.passes.step_graphs.optimizers import update_graph
from ttac.passes.verify.compare import Differences, compare_halves, relative
from ttac.spec import BATCH_STATISTICS, SOURCE_STATISTICS, Statistics

# --- adapt ------------------------------------------------------------------------------------------------------------


def adapted(
    text: str, weights: Weights, folder: Path, statistics: Statistics = BATCH_STATISTICS
) -> tuple[ir.Model, dict[str, Any]]:
    """The model before and after; the second as adapted, with the state's initial values."""
    model = normal(saved(source(text, weights), folder))
    made = adapt_norms(model, sites_of(model), statistics, {"prior": 16.0}, trains=True)
    return model, {tensor.name: tensor.initial for tensor in made.state}


def conv_bias(model: ir.Model) -> np.ndarray | None:
    (conv,) = (node for node in model.graph if node.op_type == "Conv")
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    return None if bias is None or bias.const_value is None else bias.const_value.numpy()


def shifted(model: ir.Model) -> bool:
    """Whether a norm's input is subtracted from."""
    return any(node.op_type == "Sub" and node.metadata_props["ttac.layer"] == "bn" for node in model.graph)


@pytest.mark.parametrize("has_bias", [True, False])
def test_the_source_mean_moves_into_the_bias_of_the_convolution(has_bias: bool, tmp_path: Path) -> None:
    text = CONV_NORM.replace('"conv.weight")', '"conv.weight", "conv.bias")') if has_bias else CONV_NORM
    proto = source(text, {**CONV_NORM_WEIGHTS, **({"conv.bias": (4,)} if has_bias else {})})
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    model = normal(saved(proto, tmp_path))
    assert conv_bias(model) is None or has_bias
    adapt_norms(model, sites_of(model), BATCH_STATISTICS, {}, trains=False)
    moved = weights.get("conv.bias", np.zeros(4, np.float32)) - weights["bn.running_mean"]
    np.testing.assert_array_equal(conv_bias(model), moved)
    assert not shifted(model)


NOT_MOVED = {
    "another reader": CONV_NORM.replace("r = Relu (b)", "o = Sigmoid (c) r = Mul (b, o)"),
    "a relu between": CONV_NORM.replace(
        'c = Conv <pads = [1,1,1,1]> (x, "conv.weight")', 'd = Conv <pads = [1,1,1,1]> (x, "conv.weight") c = Relu (d)'
    ),
}


@pytest.mark.parametrize("case", list(NOT_MOVED))
def test_elsewhere_the_input_is_shifted_where_it_matters_only(case: str, tmp_path: Path) -> None:
    """Far from zero, by the source's own measure: mean^2 > 30 var."""
    for mean, subtracted in ((0.1, False), (9.0, True)):
        statistics = {"bn.running_mean": np.full(4, mean, np.float32), "bn.running_var": np.ones(4, np.float32)}
        model, _ = adapted(NOT_MOVED[case], {**CONV_NORM_WEIGHTS, **statistics}, tmp_path)
        assert shifted(model) == subtracted, case


def test_every_site_owns_its_tensors(tmp_path: Path) -> None:
    """Two norms that read one scale: two graph inputs, equal at first."""
    text = CONV_NORM.replace(
        "r = Relu (b)",
        'e = BatchNormalization (b, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var") r = Relu (e)',
    )
    model, state = adapted(text, CONV_NORM_WEIGHTS, tmp_path)
    first, second = (node for node in model.graph if node.op_type == "BatchNormalization")
    for position in (1, 2):
        values = [node.inputs[position] for node in (first, second)]
        assert values[0] is not values[1] and all(value in model.graph.inputs for value in values)
        np.testing.assert_array_equal(*(state[str(value.name)] for value in values))
    assert len([name for name in state if name.endswith((".scale", ".bias"))]) == 4


def test_with_the_sources_statistics_nothing_changes(tmp_path: Path) -> None:
    path = saved(source(), tmp_path)
    before, after = normal(path), normal(path)
    made = adapt_norms(after, sites_of(after), SOURCE_STATISTICS, {}, trains=True)
    feeds = {"x": samples((3, 8, 8), 4), **{tensor.name: tensor.initial for tensor in made.state}}
    np.testing.assert_allclose(run(after, feeds)["y"], run(before, feeds)["y"], rtol=1e-6)
    assert operators(after.graph) == operators(before.graph)


def test_what_adapt_makes_tells_so(tmp_path: Path) -> None:
    before = {node.name for node in normal(saved(source(), tmp_path)).graph}
    model, _ = adapted(CONV_NORM, CONV_NORM_WEIGHTS, tmp_path)
    made = [node for node in model.graph if node.name not in before]
    assert {node.op_type for node in made} >= {"Moments", "Split", "Shape"}
    assert all(node.metadata_props["ttac.room"] == "adapt" and node.metadata_props["ttac.layer"] for node in made)


# --- insert -----------------------------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "Conv": ("Conv <group = 1>", (6, 4, 3, 3)),
    "grouped Conv": ("Conv <group = 2>", (6, 2, 3, 3)),
    "ConvTranspose": ("ConvTranspose <strides = [2,2]>", (4, 6, 3, 3)),
    "grouped ConvTranspose": ("ConvTranspose <group = 2>", (4, 3, 3, 3)),
}


@pytest.mark.parametrize("case", list(CONVOLUTIONS))
def test_an_inserted_norm_is_the_identity_on_the_source(case: str, tmp_path: Path) -> None:
    operator, size = CONVOLUTIONS[case]
    text = f"""
    net (float[N,4,6,6] x) => (float[N,3] y) {{
      c = {operator} (x, "conv.weight", "conv.bias")
      r = Relu (c)
      p = GlobalAveragePool (r)
      f = Flatten (p)
      y = Gemm (f, "fc.weight")
    }}"""
    random = np.random.default_rng(0)
    weights: Weights = {
        "conv.weight": random.normal(0, 0.01, size).astype(np.float32),
        "conv.bias": (6,),
        "fc.weight": (6, 3),
    }
    path = saved(source(text, weights), tmp_path)
    before, model = normal(path), normal(path)
    (candidate,) = find_norms(model).folded
    x = samples((4, 6, 6), 32)
    probe = normal(path)
    probe.graph.outputs[:] = [value for node in probe.graph for value in node.outputs if value.name == "c"]
    values = run(probe, {"x": x})["c"].astype(np.float64)
    mean, var = values.mean((0, 2, 3)).astype(np.float32), values.var((0, 2, 3)).astype(np.float32)
    (site,) = insert_norms(model, [candidate], {"c": (mean, var)})
    expected = run(before, {"x": x})["y"]
    np.testing.assert_allclose(run(model, {"x": x})["y"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(site.parameters["bias"], mean, rtol=1e-6)
    assert site.inserted and site.node.inputs[0] is candidate.value
    kernel = site.x.producer().inputs[1].const_value.numpy()  # type: ignore[union-attr]
    groups = 2 if "grouped ConvT" in case else 1
    by_filter = (
        kernel if operator.startswith("Conv ") else np.moveaxis(kernel.reshape(groups, 4 // groups, -1, 9), 2, 1)
    )
    np.testing.assert_allclose((by_filter.reshape(6, -1) ** 2).sum(1), 1, rtol=1e-5)
    made = adapt_norms(model, [site], BATCH_STATISTICS, {}, trains=False)
    feeds = {"x": x, **{tensor.name: tensor.initial for tensor in made.state}}
    np.testing.assert_allclose(run(spelled(model), feeds)["y"], expected, rtol=1e-4, atol=1e-5)


def test_a_filter_of_zeros_stays() -> None:
    graph = ir.Graph([ir.val("x", SINGLE, ["N", 2, 4, 4])], [], nodes=[], opset_imports={"": 18})
    op = Builder(graph, "test")
    kernel = np.zeros((2, 2, 1, 1), np.float32)
    kernel[1] = 3.0
    conv = op.Conv(graph.inputs[0], kernel, np.array([5, 6], np.float32)).producer()
    np.testing.assert_allclose(unit_filters(op, conv), [1.0, math.sqrt(18)])
    np.testing.assert_allclose(conv.inputs[1].const_value.numpy()[:, 0, 0, 0], [0, 1 / math.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(conv.inputs[2].const_value.numpy(), [5, 6 / math.sqrt(18)], rtol=1e-6)


# --- losses -----------------------------------------------------------------------------------------------------------


def entropy_of(logits: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss on `logits` and its gradient, as the graphs compute them."""
    y = ir.val("y", SINGLE, ["N", logits.shape[1]])
    graph = ir.Graph([y], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="loss")
    p = ir.val("p", SINGLE, [logits.shape[1]])
    graph.inputs.append(p)
    op = Builder(graph, "test")
    graph.outputs.append(op.Mul(y, p))
    model = ir.Model(graph, ir_version=8)
    tensor = StateTensor(name="p", role="parameter", initial=np.ones(logits.shape[1], np.float32), value=p)
    joint = differentiate_loss(model, graph.outputs[0], "entropy", (tensor,))
    assert joint.loss is not None
    graph.outputs[:] = [joint.loss.scalar, *joint.gradients]
    found = run(expand_all(model), {"y": logits.astype(np.float32), "p": tensor.initial})
    return float(found["entropy"]), found["p.grad"]


def test_entropy() -> None:
    random = np.random.default_rng(0)
    z = random.normal(0, 2, (5, 4))
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    value, gradient = entropy_of(z)
    entropies = -(np.exp(log_p) * log_p).sum(1, keepdims=True)
    assert value == pytest.approx(entropies.mean(), rel=1e-5)
    derivative = -np.exp(log_p) * (log_p + entropies) / 5
    np.testing.assert_allclose(gradient, (derivative * z).sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (np.zeros((3, 7)), math.log(7)),
        (np.full((1, 2), 1e4), math.log(2)),
        (np.array([[1e4, -1e4, 0.0]]), 0.0),
    ],
)
def test_entropy_at_its_ends(logits: np.ndarray, expected: float) -> None:
    value, gradient = entropy_of(logits)
    assert value == pytest.approx(expected, abs=1e-6) and np.isfinite(gradient).all()


# --- optimizers -------------------------------------------------------------------------------------------------------

SHAPES = {"a": (3,), "b": (2, 1, 4), "c": (1,)}
OPTIONS: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam", "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-3},
    "adam with decay": {"optimizer": "adam", "lr": 0.1, "beta1": 0.0, "beta2": 0.5, "eps": 1e-8, "weight_decay": 0.3},
    "plain": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False},
    "momentum": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.2},
    "nesterov": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
}


def in_numpy(p: np.ndarray, gradients: Sequence[np.ndarray], o: dict[str, Any]) -> np.ndarray:
    """The parameter after one step per gradient, by the formulas of PyTorch 2."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        g = g + o.get("weight_decay", 0.0) * p
        if o["optimizer"] == "adam":
            m, v = o["beta1"] * m + (1 - o["beta1"]) * g, o["beta2"] * v + (1 - o["beta2"]) * g * g
            root = np.sqrt(v / (1 - o["beta2"] ** t)) + o["eps"]
            p = p - o["lr"] * (m / (1 - o["beta1"] ** t)) / root
        else:
            v = o["momentum"] * v + g
            p = p - o["lr"] * (g + o["momentum"] * v if o["nesterov"] else v)
    return p


def in_torch(p: np.ndarray, gradients: Sequence[np.ndarray], o: dict[str, Any]) -> np.ndarray:
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(p, requires_grad=True)
    decay = o.get("weight_decay", 0.0)
    if o["optimizer"] == "adam":
        optimizer = torch.optim.Adam([tensor], o["lr"], (o["beta1"], o["beta2"]), o["eps"], decay)
    else:
        optimizer = torch.optim.SGD([tensor], o["lr"], o["momentum"], 0.0, decay, o["nesterov"])
    for gradient in gradients:
        tensor.grad = torch.tensor(gradient)
        optimizer.step()
    found: np.ndarray = tensor.detach().numpy()
    return found


@pytest.mark.parametrize("name", list(OPTIONS))
@pytest.mark.parametrize("restated", [in_numpy, in_torch])
def test_five_steps_of_the_optimizer(name: str, restated: Any) -> None:
    random = np.random.default_rng(0)
    initial = {key: random.normal(size=shape) for key, shape in SHAPES.items()}
    gradients = [{key: random.normal(size=shape) for key, shape in SHAPES.items()} for _ in range(5)]
    parameters = [
        StateTensor(
            name=key, role="parameter", initial=value.astype(np.float32), value=ir.val(key, SINGLE, value.shape)
        )
        for key, value in initial.items()
    ]
    model, moved = update_graph(parameters, [f"{key}.grad" for key in SHAPES], OPTIONS[name], 18)
    assert [value.name for value in model.graph.outputs] == [f"{tensor.name}.next" for tensor in moved]
    state = {tensor.name: tensor.initial for tensor in moved}
    for step in gradients:
        feeds = {**state, **{f"{key}.grad": value.astype(np.float32) for key, value in step.items()}}
        found = run(model, feeds)
        state = {key: found[f"{key}.next"] for key in state}
    for key, value in initial.items():
        expected = restated(value, [step[key] for step in gradients], OPTIONS[name])
        np.testing.assert_allclose(state[key], expected, rtol=1e-5, atol=1e-6)


def test_the_first_step_of_adam_is_of_full_size() -> None:
    """lr * sign(g), however small the gradient."""
    tensor = StateTensor(name="a", role="parameter", initial=np.zeros(2, np.float32), value=ir.val("a", SINGLE, [2]))
    settings = {"optimizer": "adam", "lr": 0.25, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    model, moved = update_graph([tensor], ["g"], settings, 18)
    feeds = {t.name: t.initial for t in moved} | {"g": np.array([1e-3, -1e-5], np.float32)}
    np.testing.assert_allclose(run(model, feeds)["a.next"], [-0.25, 0.25], rtol=1e-2)


# --- emit -------------------------------------------------------------------------------------------------------------


def test_a_fed_weight_is_stored_once_under_its_own_name(tmp_path: Path) -> None:
    """The runtime finds the weight by name, and a graph with the same constant points to the same bytes."""
    weight = samples((8, 64, 1, 1), 1)[0]
    graph = ir.Graph([ir.val("x", SINGLE, ["N", 64, 4, 4])], [], nodes=[], opset_imports={"": 18}, name="held")
    graph.outputs.append(Builder(graph, "test").Conv(graph.inputs[0], weight, name="y"))
    write_graphs(tmp_path, {"held": ir.Model(graph, ir_version=8)}, {"conv.weight": weight})
    stored = load_file(tmp_path / WEIGHTS)
    assert list(stored) == ["conv.weight"]
    x = samples((64, 4, 4), 2)
    np.testing.assert_allclose(
        Executable(tmp_path / "held.onnx")({"x": x})["y"], run(ir.Model(graph, ir_version=8), {"x": x})["y"]
    )


def test_weights_are_written_once_and_outside_the_graphs(tmp_path: Path) -> None:
    bundle = compiled(MODELS["resnet"], tmp_path, batch=8)
    weights = load_file(bundle / WEIGHTS)
    contents = [(array.dtype, array.shape, array.tobytes()) for array in weights.values()]
    assert len(contents) == len(set(contents))
    sizes = {path.name: path.stat().st_size for path in bundle.iterdir()}
    source_bytes = sum(t.nbytes for t in map(onnx.numpy_helper.to_array, onnx.load(MODELS["resnet"]).graph.initializer))
    assert sizes[WEIGHTS] < 2.2 * source_bytes  # the kernels, and those the input gradients need flipped
    for path in bundle.glob("*.onnx"):
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            inside = tensor.data_location != onnx.TensorProto.EXTERNAL
            floats = tensor.data_type == onnx.TensorProto.FLOAT
            assert inside == (onnx.numpy_helper.to_array(tensor, str(bundle)).nbytes <= INLINE_BYTES or not floats)
            if not inside:
                assert {entry.key: entry.value for entry in tensor.external_data}["location"] == WEIGHTS


def test_writing_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = normal(MODELS["resnet"])
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    write_graphs(tmp_path, {"graph": model})
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before
    x = samples((3, 16, 16), 2)
    np.testing.assert_array_equal(
        Executable(tmp_path / "graph.onnx")({"x": x})["logits"], run(normal(MODELS["resnet"]), {"x": x})["logits"]
    )


def test_an_engine_sees_the_sizes_of_any_number_of_parts() -> None:
    """130 parameters: their sizes are more than a kilobyte, and no engine reads them from outside the graph."""
    tensors = [
        StateTensor(name=f"p{i}", role="parameter", initial=np.ones(1, np.float32), value=ir.val(f"p{i}", SINGLE, [1]))
        for i in range(130)
    ]
    gradients = {f"p{i}.grad": np.full(1, i, np.float32) for i in range(130)}
    model, _ = update_graph(tensors, list(gradients), OPTIONS["plain"], 18)
    found = run(model, {**gradients, **{tensor.name: tensor.initial for tensor in tensors}})
    np.testing.assert_allclose([found[f"p{i}.next"][0] for i in range(130)], 1 - 0.1 * np.arange(130), rtol=1e-6)


COMPILE = """
import sys
import ttac
from ttac import finish, targets
finish.measure = lambda *_, **__: None
ttac.compile(sys.argv[1], output=sys.argv[2], batch=4)
"""


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """In processes that order their sets differently, from different folders."""
    found = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        (folder / "net.onnx").write_bytes(MODELS["mobilenet_v3"].read_bytes())
        command = [sys.executable, "-c", COMPILE, str(folder / "net.onnx"), str(folder / "b.ttac")]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, cwd=folder)
        found.append({path.name: path.read_bytes() for path in (folder / "b.ttac").iterdir()})
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []


# --- verify -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [0, 1])
def test_a_gradient_that_is_not_a_number_is_seen(broken: int) -> None:
    """Wherever in the list it stands."""
    p = ir.val("p", SINGLE, [2])
    graph = ir.Graph([p], [], nodes=[], opset_imports={"": 18}, name="joint")
    op = Builder(graph, "test")
    graph.outputs.extend([op.Mul(p, 1.0, name="logits"), op.Mul(p, 2.0, name="g0"), op.Mul(p, 3.0, name="g1")])

    class Given:
        def run(self, feeds: Arrays) -> Arrays:
            x = feeds["p"]
            found = {"logits": x, "g0": 2 * x, "g1": 3 * x}
            return {**found, f"g{broken}": np.array([math.nan, 1], np.float32)}

    model = ir.Model(graph, ir_version=8)
    feeds = {"p": np.ones(2, np.float32)}
    _, worst = compare_halves(model, Given(), feeds, "logits", ["g0", "g1"])  # type: ignore[arg-type]
    assert math.isnan(worst)
    with pytest.raises(VerificationError, match="gradients halves differ by nan"):
        Differences(logits_off=0.0, gradients_halves=worst).refuse()


@pytest.mark.parametrize("field", ["logits_off", "logits_halves", "gradients_halves", "logits_optimised", "derivative"])
def test_every_bound_is_looked_at(field: str) -> None:
    good = Differences(logits_off=0.0, logits_halves=0.0, gradients_halves=0.0, logits_optimised=0.0, derivative=0.0)
    good.refuse()
    Differences(logits_off=0.0).refuse()
    for value in (0.5, math.nan, math.inf):
        with pytest.raises(VerificationError, match=field.replace("_", " ")):
            replace(good, **{field: value}).refuse()


def test_relative_differences() -> None:
    assert relative(np.array([1.0, 2.5]), np.array([1.0, 2.0])) == pytest.approx(0.25)
    assert relative(np.zeros(0), np.zeros(0)) == 0.0 and math.isnan(relative(np.array([math.nan]), np.ones(1)))


def test_a_gradient_rule_gone_wrong_stops_the_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ttac.passes.differentiate.reverse_walk import RULES, Rule

    honest = RULES["Relu"]

    def doubled(op: Any, node: ir.Node, dz: ir.Value) -> Any:
        return honest.function(op, node, op.Mul(dz, 1.5))

    monkeypatch.setitem(RULES, "Relu", Rule(doubled, honest.broadcasts))
    monkeypatch.setattr(finish, "measure", lambda *_, **__: None)
    with pytest.raises(VerificationError, match="derivative differ by"):
        ttac.compile(MODELS["resnet"], output=tmp_path / "b.ttac")
    assert list(tmp_path.iterdir()) == []
