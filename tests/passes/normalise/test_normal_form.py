"""The room `normalise`: the batch freed, shapes bound, layers named, norms untouched by the simplifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.normal_forms import normal, refused
from tests.support.source_models import Weights, listing, saved, source
from ttac.errors import UnsupportedError, UsageError
from ttac.passes.graph.keys import LAYER
from ttac.passes.load.model_file import load
from ttac.passes.normalise.normal_form import HEAD, normalise


def test_a_plain_model_gets_shapes_and_keeps_its_nodes(tmp_path: Path) -> None:
    lines: list[str] = []
    model = normal(source(), tmp_path, say=lines.append)
    assert listing(model) == [
        "c [N,4,8,8] = Conv (x, conv.weight) pads=(1, 1, 1, 1)",
        "b [N,4,8,8] = BatchNormalization (c, bn.weight, bn.bias, bn.running_mean, bn.running_var)",
        "r [N,4,8,8] = Relu (b)",
        "p [N,4,1,1] = GlobalAveragePool (r)",
        "f [N,4] = Flatten (p)",
        "y [N,5] = Gemm (f, fc.weight, fc.bias) transB=1",
    ]
    assert not lines and model.metadata_props[HEAD] == "logits"
    assert all(value.dtype == ir.DataType.FLOAT for node in model.graph for value in node.outputs)


def test_the_loaded_model_stays_unchanged(tmp_path: Path) -> None:
    loaded = load(saved(source(), tmp_path))
    before = ir.to_onnx_text(loaded)
    assert normalise(loaded, simplifier=None) is not loaded
    assert ir.to_onnx_text(loaded) == before


def test_the_same_file_gives_the_same_model(tmp_path: Path) -> None:
    first, second = (ir.to_onnx_text(normal(source(), tmp_path)) for _ in range(2))
    assert first == second


def test_shape_arithmetic_disappears(tmp_path: Path) -> None:
    text = """
    net (float[N,3,2,2] x) => (float[N,12] y) {
      s = Shape (x)
      n = Gather <axis = 0> (s, zero)
      u = Unsqueeze (n, axes)
      target = Concat <axis = 0> (u, rest)
      y = Reshape (x, target)
    }"""
    weights = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    assert listing(normal(source(text, dict(weights)), tmp_path)) == ["y [N,12] = Reshape (x, [-1, 12])"]


def test_shapes_that_depend_on_data_are_refused(tmp_path: Path) -> None:
    text = """
    net (float[N,4] x) => (float[N,4] y) {
      [where] places = NonZero (x)
      z = Cast <to = 1> (places)
      m = ReduceMax <keepdims = 0> (z)
      y = Add (x, m)
    }"""
    refused(UnsupportedError, source(text, {}), tmp_path, "cannot be inferred", "node `where` (NonZero)")


def test_branches_on_a_whole_batch_are_refused(tmp_path: Path) -> None:
    text = """
    net (float[N,4] x) => (float[N,4] y) {
      m = ReduceMax <keepdims = 0> (x)
      c = Greater (m, zero)
      [branch] y = If (c) <
        then_branch = g1 () => (float[N,4] a) { a = Relu (x) },
        else_branch = g2 () => (float[N,4] b) { b = Neg (x) }
      >
    }"""
    model = source(text, {"zero": np.array(0, np.float32)})
    refused(UnsupportedError, model, tmp_path, "control flow", "node `branch` (If)")


def test_open_dimensions_must_be_stated(tmp_path: Path) -> None:
    text = """
    net (float[N,3,height,width] x) => (float[N,4,h,w] y) { y = Conv <pads = [1,1,1,1]> (x, "conv.weight") }"""
    weights: Weights = {"conv.weight": (4, 3, 3, 3)}
    model = source(text, weights)
    parts = ("the size of `height`, `width` is open", "[N, 3, height, width]", "--shape 3x224x224", "--calibration")
    refused(UnsupportedError, model, tmp_path, *parts)
    assert listing(normal(model, tmp_path, shape=(3, 6, 8))) == [
        "y [N,4,6,8] = Conv (x, conv.weight) pads=(1, 1, 1, 1)"
    ]
    for wrong in ((1, 6, 8), (6, 8)):
        refused(UsageError, model, tmp_path, "do not fit the input `x`", "--shape 3xheightxwidth", shape=wrong)


def test_a_stated_shape_may_repeat_the_file(tmp_path: Path) -> None:
    assert len(normal(source(), tmp_path, shape=(3, 8, 8)).graph) == 6
    refused(UsageError, source(), tmp_path, "samples of shape [3, 9, 9]", "--shape 3x8x8", shape=(3, 9, 9))


def test_an_input_without_a_shape(tmp_path: Path) -> None:
    model = source()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        loaded = load(path)
    except UnsupportedError as error:
        assert "shape" in str(error)
    else:
        with pytest.raises(UnsupportedError, match="size of a sample is open"):
            normalise(loaded, simplifier=None)
        assert listing(normalise(loaded, shape=(3, 8, 8), simplifier=None))[-1].startswith("y [N,5]")


def test_an_input_needs_more_than_a_batch(tmp_path: Path) -> None:
    refused(
        UnsupportedError, source("net (float[N] x) => (float[N] y) { y = Relu (x) }", {}), tmp_path, "without an axis"
    )


def test_results_that_are_no_numbers_agree(tmp_path: Path) -> None:
    """On random samples a logarithm gives NaN, in the file as in the normal form."""
    text = "net (float[1,4] x) => (float[1,2,2] y) { l = Log (x) y = Reshape (l, shape) }"
    assert len(normal(source(text, {"shape": np.array([1, 2, 2])}), tmp_path).graph) == 2


def test_leftovers_are_cleaned(tmp_path: Path) -> None:
    text = """
    net (float[N,3,8,8] x) => (float[N,4,8,8] y) {
      k = Constant <value_ints = [0, 1]> ()
      unused = Relu (x)
      same = Identity (x)
      zero = CastLike (nothing, same)
      filled = Expand (zero, four)
      [only] c = Conv <pads = [1,1,1,1]> (same, "conv.weight", filled)
      [only] d = Relu (c)
      shape = Shape (x)
      e = Reshape (d, whole)
      y = Identity (e)
    }"""
    weights: Weights = {
        "conv.weight": (4, 3, 3, 3), "nothing": np.array(0, np.float32), "four": np.array([4]),
        "whole": np.array([0, 4, 8, 8]), "dead": (7,),
    }  # fmt: skip
    model = normal(source(text, weights), tmp_path)
    assert listing(model) == ["c [N,4,8,8] = Conv (x, conv.weight) pads=(1, 1, 1, 1)", "y [N,4,8,8] = Relu (c)"]
    assert list(model.graph.initializers) == ["conv.weight"] and model.opset_imports == {"": 18}
    assert [node.name for node in model.graph] == ["only", "only@2"]


@pytest.mark.parametrize(
    ("op_type", "head"),
    [("Softmax", "softmax"), ("LogSoftmax", "log_softmax"), ("Sigmoid", "sigmoid"), ("Relu", "logits")],
)
def test_the_kind_of_output_is_recorded(tmp_path: Path, op_type: str, head: str) -> None:
    text = f"net (float[N,4] x) => (float[N,4] y) {{ y = {op_type} (x) }}"
    assert normal(source(text, {}), tmp_path).metadata_props[HEAD] == head


def test_layers_are_unique_and_parameters_come_first(tmp_path: Path) -> None:
    text = """
    net (float[N,4,2,2] x) => (float[N,4,2,2] y) {
      ["/bn/Mul"] m = Mul (x, x)
      ["/bn/BatchNormalization"] a = BatchNormalization (m, s, b, b, s)
      ["/bn/BatchNormalization_1"] y = BatchNormalization (a, s, b, b, s)
    }"""
    model = normal(source(text, {"s": (4,), "b": (4,)}), tmp_path)
    assert [node.metadata_props[LAYER] for node in model.graph] == ["bn.mul", "bn", "bn@2"]
