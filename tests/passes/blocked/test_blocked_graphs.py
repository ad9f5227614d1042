"""Blocked graphs compute the numbers of the portable ones: any block size, written out in standard operators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file

from tests.support.blocked_reference import spelled_out
from tests.support.tiny_bundles import read
from tests.support.whole_models import MODELS, Arrays, compiled, samples
from ttac.passes.blocked.block_graphs import block_graphs
from ttac.passes.blocked.layout import DOMAIN
from ttac.passes.graph.execute import run
from ttac.passes.kernels.with_kernels import with_kernels
from ttac.runtime.reorder import reordered

NETS = ["resnet", "resnet_bottleneck", "resnext", "regnet", "wide_resnet", "mobilenet_v2", "mobilenet_v3", "densenet"]
NETS += ["efficientnet", "shufflenet", "hourglass", "transformer", "volume", "signal"]


def step_graphs(folder: Path, *, kernels: bool = False) -> Mapping[str, ir.Model]:
    """The forward graph and the stages of the backward, in the order in which they run; with nodes of the library."""
    manifest = read(folder)
    names = [word["run"] for word in manifest["programs"]["step"] if "run" in word]
    files = {name: folder / manifest["graphs"][name]["file"] for name in names if name != "update"}
    graphs = {name: ir.load(file) for name, file in files.items()}
    return with_kernels(graphs, names_outside(folder)) if kernels else graphs


def names_outside(folder: Path) -> set[str]:
    """Outputs of the step's graphs that the state or the caller reads."""
    manifest = read(folder)
    tables = [graph[key] for graph in manifest["graphs"].values() for key in ("state", "stats")]
    gradients = {f"{tensor['name']}.grad" for tensor in manifest["state"]["tensors"]}
    return {manifest["outputs"][0]["name"], *gradients, *(name for table in tables for name in table)}


def executed(graphs: Mapping[str, ir.Model], values: Arrays) -> Arrays:
    found = dict(values)
    for model in graphs.values():
        found |= run(model, found, optimised=False)
    return found


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_same_numbers_in_blocks(name: str, kernels: bool, tmp_path: Path) -> None:
    check_numbers(compiled(MODELS[name], tmp_path, batch=8, method="tent"), kernels)


def check_numbers(folder: Path, kernels: bool) -> None:
    """Compare the blocked step with the portable one, in blocks of four and of eight channels."""
    weights, x = load_file(folder / "weights.safetensors"), read(folder)["inputs"][0]
    values = {**weights, **load_file(folder / "state.safetensors"), x["name"]: samples(x["shape"][1:])}
    portable = executed(step_graphs(folder), values)
    for block in (4, 8):
        graphs = step_graphs(folder, kernels=kernels)
        made = block_graphs(graphs, block, set(weights), names_outside(folder), kernels=kernels)
        reordered_weights = {
            name: reordered(_array(recipe.value, weights), block, recipe.order, recipe.taps, recipe.groups)
            for name, recipe in made.recipes.items()
        }
        written = {name: spelled_out(model, block) for name, model in made.graphs.items()}
        found = executed(written, {**values, **reordered_weights})
        for output in names_outside(folder) & set(portable):
            scale = max(1e-3, float(np.abs(portable[output]).max()))
            np.testing.assert_allclose(found[output], portable[output], rtol=0, atol=2e-3 * scale, err_msg=output)


def _array(value: ir.Value, weights: Arrays) -> np.ndarray:
    return weights[str(value.name)] if value.const_value is None else value.const_value.numpy()


def test_plain_convnets_stay_in_blocks(tmp_path: Path) -> None:
    folder = compiled(MODELS["resnet"], tmp_path, batch=8, method="tent")
    weights = load_file(folder / "weights.safetensors")
    made = block_graphs(step_graphs(folder), 4, set(weights), names_outside(folder))
    nodes = [node for model in made.graphs.values() for node in model.graph]
    assert not [node for node in nodes if node.op_type in ("Conv", "ConvTranspose") and node.domain != DOMAIN]
    assert sum(node.op_type.startswith("Reorder") for node in nodes) <= 4


def test_zeros_fill_the_last_block_of_a_kernel() -> None:
    weight = np.arange(12 * 20 * 9, dtype=np.float32).reshape(12, 20, 3, 3)
    filled = np.zeros((16, 24, 3, 3), np.float32)
    filled[:12, :20] = weight
    np.testing.assert_array_equal(reordered(weight, 8, "OIHWBiBo"), reordered(filled, 8, "OIHWBiBo"))
    np.testing.assert_array_equal(reordered(weight, 8, "OIHWBo"), reordered(filled[:, :20], 8, "OIHWBo"))


def test_twelve_channels_stay_in_blocks_of_eight(tmp_path: Path) -> None:
    folder = compiled(MODELS["mobilenet_v2"], tmp_path, batch=8, method="tent")
    weights = load_file(folder / "weights.safetensors")
    graphs = step_graphs(folder, kernels=True)
    made = block_graphs(graphs, 8, set(weights), names_outside(folder), kernels=True)
    nodes = [node for model in made.graphs.values() for node in model.graph]
    assert any(recipe.order == "OIHWBiBo" and recipe.value.shape[0] == 12 for recipe in made.recipes.values())  # type: ignore[index]
    assert sum(node.op_type.startswith("Reorder") for node in nodes) <= 1
