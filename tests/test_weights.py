"""Full tuning: kernels, matrices and biases that train, and what becomes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

import ttac
from tests.tiny_bundles import read
from tests.whole_models import MODELS, compiled, samples
from ttac.bake import bake
from ttac.passes import optimizers
from ttac.passes.execute import Executable


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
    bake(folder, tmp_path / "state.safetensors", tmp_path / "baked.onnx")
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
    for large in (optimizers.LARGE, 64):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optimizers, "LARGE", large)
            adapter = ttac.load(compiled(MODELS["resnet"], tmp_path, method="tent", batch=4, train="all"))
            for _ in range(3):
                adapter.step(samples(adapter.input_shape, 4))
            adapter.save(tmp_path / f"{large}.safetensors")
            moved[large] = adapter.predict(samples(adapter.input_shape, 4, seed=1))
    first, second = moved.values()
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-6 * np.abs(first).max())
