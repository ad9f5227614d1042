"""Norms that adapt: their statistics, their shift, and the tensors of each site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.source_models import CONV_NORM, CONV_NORM_WEIGHTS, Weights, saved, source
from tests.support.whole_models import normal, operators, samples, sites_of
from ttac.passes.adapt.adapt_norms import adapt_norms
from ttac.passes.graph.execute import run
from ttac.spec import BATCH_STATISTICS, SOURCE_STATISTICS, Statistics


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
