"""Full tuning: kernels, matrices and biases that train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file

import ttac
from tests.support.tiny_bundles import read
from tests.support.whole_models import MODELS, SINGLE, compiled, samples
from ttac.bake import bake
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import Executable, run
from ttac.passes.graph.keys import SEED
from ttac.passes.graph.state import StateTensor
from ttac.passes.lower.lower import lower
from ttac.passes.plan.liveness import bytes_over_time
from ttac.passes.plan.schedule import recompute_late
from ttac.passes.step_graphs import optimizers
from ttac.passes.step_graphs.optimizers import update_graph, update_graphs
from ttac.targets import find


def trained(folder: Path) -> set[str]:
    return {tensor["name"] for tensor in read(folder)["state"]["tensors"] if tensor["role"] == "parameter"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "transformer", "hourglass"])
@pytest.mark.parametrize("method", ["tent", "surgeon"])
def test_everything_trains_and_can_be_baked(name: str, method: str, tmp_path: Path) -> None:
    """The compile verified every gradient against differences; here the step moves all of it, and the model keeps it."""
    folder = compiled(MODELS[name], tmp_path, method=method, batch=4, train="all")
    parameters = trained(folder)
    norms = {f"{site['name']}.{role}" for site in read(folder)["sites"] for role in ("scale", "bias")}
    constants = {t.name for t in onnx.load(folder / "infer.onnx", load_external_data=False).graph.initializer}
    assert parameters <= constants and len(parameters - norms) > len(norms & parameters) / 2
    adapter = ttac.load(folder)
    x = samples(adapter.input_shape, 4)
    before = adapter.predict(x)
    adapter.step(x)
    after = adapter.predict(x)
    assert adapter.stats["rejected"] == 0 and np.abs(after - before).max() > 1e-4
    adapter.save(tmp_path / "state.safetensors")
    bake(folder, tmp_path / "state.safetensors", tmp_path / "baked.onnx", force=True)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "baked.onnx").graph.initializer}
    state = load_file(tmp_path / "state.safetensors")
    for parameter in parameters:
        np.testing.assert_array_equal(held[parameter], state[parameter])
    if name == "transformer":  # no statistics of the batch: the baked model is the adapted one
        found = Executable(tmp_path / "baked.onnx")({read(folder)["inputs"][0]["name"]: x})
        np.testing.assert_allclose(
            found[read(folder)["outputs"][0]["name"]], after, rtol=0, atol=2e-5 * np.abs(after).max()
        )


def test_a_bias_that_a_norm_takes_off_again_stays(tmp_path: Path) -> None:
    """With batch statistics its gradient is zero, and Adam would follow the rounding."""
    batch = compiled(MODELS["resnet"], tmp_path, method="tent", batch=4, train="all")
    manifest = read(batch)
    biases = {name for name in trained(batch) if name.endswith(".bias")}
    norms = {f"{site['name']}.bias" for site in manifest["sites"]}
    assert norms <= biases and len(biases - norms) <= 1  # the classifier's


def test_large_tensors_are_stepped_by_themselves(tmp_path: Path) -> None:
    """The same numbers as all at once: an Adam step is elementwise."""
    moved = {}
    for large in (optimizers.LARGE_ELEMENTS, 64):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optimizers, "LARGE_ELEMENTS", large)
            adapter = ttac.load(compiled(MODELS["resnet"], tmp_path, method="tent", batch=4, train="all"))
            for _ in range(3):
                adapter.step(samples(adapter.input_shape, 4))
            adapter.save(tmp_path / f"{large}.safetensors")
            moved[large] = adapter.predict(samples(adapter.input_shape, 4, seed=1))
    first, second = moved.values()
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-6 * np.abs(first).max())


def test_a_large_state_is_overwritten_tensor_by_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very numbers of an exchange at once, and a state file that either bundle takes."""
    monkeypatch.setattr(optimizers, "LARGE_ELEMENTS", 64)
    adapters, lates = [], []
    for worth in (64, 1 << 40):
        monkeypatch.setattr(optimizers, "SEPARATE_ELEMENTS", worth)
        (tmp_path / str(worth)).mkdir()
        folder = compiled(MODELS["resnet"], tmp_path / str(worth), method="tent", batch=4, train="all")
        lates.append([word["run"] for word in read(folder)["programs"]["step"] if word.get("deferred")])
        adapters.append(ttac.load(folder))
    assert len(lates[0]) > 2 and not lates[1]
    late, once = adapters
    for seed in range(3):
        x = samples(late.input_shape, 4, seed)
        np.testing.assert_array_equal(late.step(x), once.step(x))
    late.save(tmp_path / "late.safetensors")
    once.save(tmp_path / "once.safetensors")
    np.testing.assert_equal(load_file(tmp_path / "late.safetensors"), load_file(tmp_path / "once.safetensors"))
    once.restore(tmp_path / "late.safetensors")
    np.testing.assert_array_equal(late.predict(x), once.predict(x))


ADAM = {"optimizer": "adam", "lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
NESTEROV = {"optimizer": "sgd", "lr": 1e-2, "momentum": 0.9, "nesterov": True}


@pytest.mark.parametrize("settings", [ADAM, NESTEROV])
@pytest.mark.parametrize("small", [{}, {"scale": (3,), "bias": (2,)}])
def test_graphs_of_an_update_do_what_one_does(
    settings: dict[str, object], small: dict[str, tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "LARGE_ELEMENTS", 8)
    monkeypatch.setattr(optimizers, "SEPARATE_ELEMENTS", 8)
    shapes = {"a": (4, 3), "b": (20,), **small, "c": (2, 5), "d": (8,), "e": (3, 4)}
    tensors = [
        StateTensor(name=name, role="parameter", initial=samples(shape, 1)[0], value=ir.val(name, SINGLE, shape))
        for name, shape in shapes.items()
    ]
    gradients = {f"{name}.grad": samples(shape, 1, seed=1)[0] for name, shape in shapes.items()}
    whole = update_graph(tensors, list(gradients), settings, 18)
    parts = update_graphs(tensors, list(gradients), settings, 18)
    stepped = [[t.name for t in part.state if t.role == "parameter"] for part in parts]
    assert stepped == [*([list(small)] if small else []), ["a"], ["b"], ["c", "d"], ["e"]]
    state = {t.name: t.initial for t in whole.state}
    assert {t.name for part in parts for t in part.state} == set(state)
    for _ in range(3):
        expected = run(whole.model, {**state, **gradients})
        found: dict[str, np.ndarray] = {}
        for part in parts:
            found |= run(part.model, {**state, **gradients, **found})
        for name in state:
            np.testing.assert_allclose(found[f"{name}.next"], expected[f"{name}.next"], rtol=1e-6)
        state = {name: expected[f"{name}.next"] for name in state}


def kernel_gradient(channels: int, outputs: int, group: int, size: int) -> ir.Graph:
    """The gradient of a 3x3 kernel, in standard operators."""
    shapes = {"x": ["N", channels, size, size], "dy": ["N", outputs, size, size]}
    graph = ir.Graph([ir.val(k, SINGLE, s) for k, s in shapes.items()], [], nodes=[], opset_imports={"": 18})
    window = {"kernel": [3, 3], "strides": [1, 1], "dilations": [1, 1], "begins": [1, 1]}
    sizes = {"sizes": [size, size], "outs": [size, size]}
    dw = Builder(graph, "test").ConvWeightGrad(*graph.inputs, **window, **sizes, group=group)
    graph.outputs.append(dw)
    lower(ir.Model(graph, ir_version=8), find("cpu"))
    return graph


@pytest.mark.parametrize(("channels", "outputs", "group", "size"), [(64, 64, 16, 16), (32, 64, 1, 16), (64, 128, 1, 4)])
def test_the_gradient_of_a_kernel_reads_one_tap_at_a_time(channels: int, outputs: int, group: int, size: int) -> None:
    graph = kernel_gradient(channels, outputs, group, size)
    read, made = 4 * channels * (size + 2) ** 2, 4 * outputs * size**2
    weights = 4 * outputs * channels // group * 9
    assert bytes_over_time(graph, 1).max() <= 3 * max(read, made) + 3 * weights
    products = [node for node in graph if node.op_type == "MatMul"]
    assert products and all(v.producer().op_type != "Transpose" for node in products for v in node.inputs)  # type: ignore[union-attr]


def test_a_restored_input_of_two_kernels_is_freed_after_each() -> None:
    """A block with a strided shortcut: the gradients that need its input come together, and the larger one is last."""
    shapes = {"kept": ["N", 8, 4, 4], "seed": ["N", 8, 2, 2], "w1": [8, 8, 1, 1], "w2": [8, 8, 2, 2]}
    graph = ir.Graph([ir.val(k, SINGLE, s) for k, s in shapes.items()], [], nodes=[], opset_imports={"": 18})
    kept, dy, first, shortcut = graph.inputs
    dy.metadata_props[SEED] = "true"
    op = Builder(graph, "autodiff")
    one = {"kernel": [1, 1], "strides": [1, 1], "dilations": [1, 1], "begins": [0, 0], "group": 1}
    two = {**one, "kernel": [2, 2], "strides": [2, 2]}
    x = op.Relu(kept)
    dw_shortcut = op.ConvWeightGrad(x, dy, **two, sizes=[4, 4], outs=[2, 2])
    dx_shortcut = op.ConvInputGrad(dy, shortcut, **two, sizes=[4, 4], outs=[2, 2], frozen=0)
    inner = op.Resize(dy, None, np.array([1, 1, 2, 2], np.float32), mode="nearest")
    inner.shape = ir.Shape(shapes["kept"])
    dw_first = op.ConvWeightGrad(x, inner, **one, sizes=[4, 4], outs=[4, 4])
    dx_first = op.ConvInputGrad(inner, first, **one, sizes=[4, 4], outs=[4, 4], frozen=0)
    graph.outputs.extend([dw_shortcut, dw_first, op.Add(dx_shortcut, dx_first)])
    recompute_late(graph)
    made = [node.outputs[0] for node in graph]
    assert made == [inner, x, dw_shortcut, dw_first, dx_first, dx_shortcut, graph.outputs[2]]
