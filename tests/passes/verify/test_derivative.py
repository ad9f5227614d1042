"""The derivative of the loss by finite differences, where the loss is flat: confident and near-uniform predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import ttac
import ttac.passes.differentiate.rules
from tests.support.source_models import Weights, norm, saved, source
from ttac.errors import VerificationError
from ttac.passes.differentiate.reverse_walk import RULES, Rule
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import run
from ttac.passes.verify.compare import Differences
from ttac.passes.verify.derivative import BOUND, Loss, derivative_error, mean_error
from ttac.passes.verify.float64 import float64_of

BODY = """
  c = Conv <pads = [1,1,1,1]> (x, "conv.weight")
  b = BatchNormalization (c, "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  r = Relu (b)
  d = Conv <pads = [1,1,1,1]> (r, "next.weight")
  e = BatchNormalization (d, "last.weight", "last.bias", "last.running_mean", "last.running_var")
  s = Relu (e)
  p = GlobalAveragePool (s)
  f = Flatten (p)
  z = Gemm <transB = 1> (f, "fc.weight", "fc.bias")
"""
ENDINGS = {"scores": "y = Identity (z)", "softmax": "y = Softmax (z)", "sigmoid": "y = Sigmoid (z)"}
METHODS = ("tent", "eata", "sar")


def net(ending: str, gain: float, outputs: int, offset: float = 0.0) -> tuple[str, Weights]:
    """A net whose scores are multiplied by `gain`; `offset` moves the first score."""
    random = np.random.default_rng(3)
    text = f"net (float[N,3,8,8] x) => (float[N,{outputs}] y) {{ {BODY} {ENDINGS[ending]} }}"
    bias = gain * random.normal(size=outputs)
    bias[0] += offset
    return text, {
        "conv.weight": random.normal(size=(6, 3, 3, 3)).astype(np.float32),
        "next.weight": random.normal(size=(8, 6, 3, 3)).astype(np.float32),
        **norm("bn", 6), **norm("last", 8),
        "fc.weight": (gain * random.normal(size=(outputs, 8))).astype(np.float32), "fc.bias": bias.astype(np.float32),
    }  # fmt: skip


NETS = {
    "uniform": ("scores", 1e-3, 1000, 0.0),
    "uniform, softmax": ("softmax", 1e-3, 100, 0.0),
    "ordinary": ("scores", 1.0, 10, 0.0),
    "confident": ("scores", 1.0, 10, 11.0),
    "confident, softmax": ("softmax", 1.0, 10, 11.0),
    "confident answer": ("sigmoid", 0.5, 1, -9.0),
}


def compiled(name: str, method: str, folder: Path) -> ttac.Bundle:
    ending, gain, outputs, offset = NETS[name]
    path = saved(source(*net(ending, gain, outputs, offset)), folder)
    head = "binary" if ending == "sigmoid" else "auto"
    return ttac.compile(path, method=method, head=head, batch=4, dry_run=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(NETS))
def test_a_right_gradient_raises_no_alarm(name: str, method: str, tmp_path: Path) -> None:
    assert compiled(name, method, tmp_path).manifest["verified"]["derivative"] <= BOUND


@pytest.mark.parametrize(
    ("method", "factor"), [("tent", 1.01), ("tent", 0.99), ("eata", 1.01), ("sar", 1.01), ("sar", 0.99)]
)
@pytest.mark.parametrize("name", list(NETS))
def test_a_gradient_wrong_by_one_per_cent_is_seen(
    name: str, method: str, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = RULES["GlobalAveragePool"]

    def wrong(op: Builder, node: ir.Node, *given: ir.Value) -> ir.Value:
        return op.Mul(right.function(op, node, *given), factor)

    monkeypatch.setitem(RULES, "GlobalAveragePool", Rule(wrong, right.broadcasts))
    with pytest.raises(VerificationError, match="derivative"):
        compiled(name, method, tmp_path)


def squares(bend: float = 0.0) -> tuple[list[np.ndarray], np.ndarray, Loss]:
    """Parameters, the right gradient, and a loss of them: the sum of the squares, and kinks of size `bend`."""
    p = np.array([0.3, -0.2, 0.7], np.float32)
    return [p], 2 * p, lambda scores: float((scores[0] ** 2).sum() + bend * np.abs(scores[0] - 0.3001).sum())


def same(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    return list(values)


@pytest.mark.parametrize(
    ("factor", "seen"), [(1.0, False), (1.01, True), (1.05, True), (0.99, True), (-1.0, True), (math.nan, True)]
)
def test_a_wrong_gradient_of_squares_is_seen(factor: float, seen: bool) -> None:
    parameters, gradient, loss = squares()
    error = derivative_error(parameters, [factor * gradient], same, lambda: None, loss)
    differences = Differences(logits_off=0.0, derivative=error)
    if seen:
        with pytest.raises(VerificationError, match="derivative"):
            differences.refuse()
    else:
        differences.refuse()


def test_a_loss_that_is_not_a_number_is_seen() -> None:
    parameters, gradient, _ = squares()
    assert not derivative_error(parameters, [gradient], same, lambda: None, lambda scores: math.nan) <= BOUND


def test_float64_decides_where_kinks_hide_the_derivative() -> None:
    """The kink lies 1e-4 from the parameters: all float32 steps cross it, and no float64 step does."""
    parameters, _, loss = squares(bend=10.0)
    right = np.where(parameters[0] > 0.3001, 10.0, -10.0) + 2 * parameters[0]
    assert derivative_error(parameters, [right], same, lambda: same, loss) <= 1e-5
    assert derivative_error(parameters, [1.01 * right], same, lambda: same, loss) > BOUND


def test_errors_of_both_signs_are_kinks_not_a_wrong_gradient() -> None:
    assert mean_error([0.012, -0.009, 0.011, -0.013, 0.008, -0.01, 0.004, -0.002]) == 0.0
    assert mean_error([0.012, 0.009, 0.011, 0.013, 0.008, 0.01, 0.014, 0.012]) > BOUND


def test_the_verdict_without_float64_comes_from_more_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttac.verification.float64_of", lambda *_: None)
    for name in NETS:
        assert compiled(name, "sar", tmp_path).manifest["verified"]["derivative"] <= BOUND


def test_outputs_unlike_those_of_the_engine_are_no_reference() -> None:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(source(*net("scores", 1.0, 5))))
    samples = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = run(model, {"x": samples})["y"]
    assert float64_of(model, {"x": samples}, [expected]) is not None
    assert float64_of(model, {"x": samples}, [1.05 * expected]) is None
