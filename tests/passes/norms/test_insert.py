"""Norms inserted behind convolutions: the model computes the same as before."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.source_models import Weights, saved, source
from tests.support.whole_models import SINGLE, normal, samples, spelled
from ttac.passes.adapt.adapt_norms import adapt_norms
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import run
from ttac.passes.norms.insert import insert_norms, unit_filters
from ttac.passes.norms.norm_sites import find_norms
from ttac.spec import BATCH_STATISTICS

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


def test_a_filter_near_zero_keeps_a_finite_norm() -> None:
    """A filter of 1e-39 with a bias of 0.5: the bias over the length of the filter is no float32."""
    graph = ir.Graph([ir.val("x", SINGLE, ["N", 2, 4, 4])], [], nodes=[], opset_imports={"": 18})
    op = Builder(graph, "test")
    kernel = np.full((2, 2, 1, 1), 1e-39, np.float32)
    kernel[1] = 3.0
    conv = op.Conv(graph.inputs[0], kernel, np.array([0.5, 6], np.float32)).producer()
    np.testing.assert_allclose(unit_filters(op, conv), [1.0, math.sqrt(18)])
    assert conv.inputs[2].const_value.numpy()[0] == np.float32(0.5)


def test_a_filter_of_zeros_stays() -> None:
    graph = ir.Graph([ir.val("x", SINGLE, ["N", 2, 4, 4])], [], nodes=[], opset_imports={"": 18})
    op = Builder(graph, "test")
    kernel = np.zeros((2, 2, 1, 1), np.float32)
    kernel[1] = 3.0
    conv = op.Conv(graph.inputs[0], kernel, np.array([5, 6], np.float32)).producer()
    np.testing.assert_allclose(unit_filters(op, conv), [1.0, math.sqrt(18)])
    np.testing.assert_allclose(conv.inputs[1].const_value.numpy()[:, 0, 0, 0], [0, 1 / math.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(conv.inputs[2].const_value.numpy(), [5, 6 / math.sqrt(18)], rtol=1e-6)
