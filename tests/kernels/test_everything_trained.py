"""Bundles of `--train all` have forms with kernels, which take the steps of the portable graphs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("ttac_kernels", reason="needs ttac-kernels (make kernels)")

import ttac
from tests.support.tiny_bundles import read
from tests.support.whole_models import MODELS, compiled, samples
from ttac.passes.blocked.probe import engine_block
from ttac.runtime import load

DEMO = Path(ttac.__file__).parent / "demo"
SETTINGS = {"guard": "off", "optimizer": "sgd", "lr": 0.01}


def nodes_of(folder: Path) -> Counter[str]:
    """Operators of the form with kernels that this machine runs; skips where it has none."""
    block = engine_block(kernels=True)[0]
    form = next((form for form in read(folder)["forms"] if form["name"] == f"kernels-{block}"), None)
    if form is None:
        pytest.skip(f"the net gains nothing from blocks of {block} channels")
    models = [ir.load(folder / file) for file in form["graphs"].values()]
    return Counter(node.op_type for model in models for node in model.graph if node.domain)


def check_steps(folder: Path, within: float) -> None:
    """Three steps of both forms, the last one with fewer samples."""
    x = samples(read(folder)["inputs"][0]["shape"][1:])
    portable, kernels = (load(folder, form=form, threads=2) for form in ("portable", "kernels"))
    for count in (len(x), len(x), 3):
        expected, found = (np.asarray(adapter.step(x[:count])) for adapter in (portable, kernels))
        assert np.abs(found - expected).max() <= within * np.abs(expected).max()
    assert kernels.stats["form"].startswith("kernels")


@pytest.mark.skipif(not engine_block(kernels=True)[0], reason="the engine has no blocked layout")
@pytest.mark.parametrize("name", ["resnet", "resnet_bottleneck"])
def test_weight_gradients_have_nodes_and_agree(name: str, tmp_path: Path) -> None:
    folder = compiled(MODELS[name], tmp_path, batch=8, method="tent", train="all", settings=SETTINGS)
    nodes = nodes_of(folder)
    assert nodes["ConvWeightGrad"] >= 5 and nodes["ReorderWeights"] > nodes["ConvWeightGrad"]
    check_steps(folder, 1e-4)


@pytest.mark.skipif(not engine_block(kernels=True)[0], reason="the engine has no blocked layout")
def test_saves_that_weight_gradients_read_have_nodes(tmp_path: Path) -> None:
    net, calibration = DEMO / "fashion_resnet_bn.onnx", DEMO / "fashion_calibration.npz"
    folder = compiled(net, tmp_path, method="surgeon", batch=8, train="all", calibration=calibration, settings=SETTINGS)
    nodes = nodes_of(folder)
    assert nodes["QuantizeRows"] == nodes["DequantizeRows"] > 0 and nodes["RestoreBlocks"] > 0
    assert nodes["ConvWeightGrad"] >= 5
    check_steps(folder, 1e-3)
