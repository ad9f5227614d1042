"""GELU written out with Erf, gathered before it is differentiated."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support.source_models import Weights, listing, run, source
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.composites import DOMAIN
from ttac.passes.graph.expand import expand_all
from ttac.passes.operators.gelu import gather_gelus

NUMBERS: Weights = {
    "root": np.array(math.sqrt(2.0), np.float32), "inverse": np.array(math.sqrt(0.5), np.float32),
    "one": np.array(1, np.float32), "half": np.array([0.5], np.float32), "two": np.array(2, np.float32),
}  # fmt: skip
SPELLINGS = {
    "torch": "u = Div (h, root) e = Erf (u) a = Add (e, one) p = Mul (h, a) y = Mul (p, half)",
    "half of x first": "u = Mul (inverse, h) e = Erf (u) a = Add (one, e) p = Mul (h, half) y = Mul (a, p)",
    "half of the sum first": "u = Mul (h, inverse) e = Erf (u) a = Add (e, one) p = Mul (half, a) y = Mul (p, h)",
}
OTHERS = {
    "another number": "u = Div (h, two) e = Erf (u) a = Add (e, one) p = Mul (h, a) y = Mul (p, half)",
    "erf of something else": "v = Neg (h) u = Div (v, root) e = Erf (u) a = Add (e, one) p = Mul (h, a) y = Mul (p, half)",
    "read on the way": "u = Div (h, root) e = Erf (u) a = Add (e, one) p = Mul (h, a) q = Mul (p, half) y = Add (q, p)",
    "never halved": "u = Div (h, root) e = Erf (u) a = Add (e, one) y = Mul (h, a)",
    "no sum": "u = Div (h, root) e = Erf (u) p = Mul (h, e) y = Mul (p, half)",
}


def model_of(body: str) -> ir.Model:
    words = set(body.replace(",", " ").replace("(", " ").replace(")", " ").split())
    used = {name: value for name, value in NUMBERS.items() if name in words}
    model = source(f"net (float[N,6] x) => (float[N,6] y) {{ h = Tanh (x) {body} }}", used)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_each_order_of_factors_becomes_one_operator(body: str) -> None:
    model, x = model_of(body), np.linspace(-9, 9, 24, dtype=np.float32).reshape(4, 6)
    before = run(model.clone(), x)
    assert gather_gelus(model) == 1
    assert listing(model)[1:] == ["y [N,6] = ExactGelu (h)"] and model.graph[-1].domain == DOMAIN
    model.opset_imports[DOMAIN] = 1
    expand_all(model)
    assert [node.op_type for node in model.graph] == ["Tanh", "Mul", "Erf", "HardSigmoid", "Mul"]
    np.testing.assert_allclose(run(model, x), before, atol=1e-6)


@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_what_is_none_stays(body: str) -> None:
    model = model_of(body)
    before = ir.to_onnx_text(model)
    assert gather_gelus(model) == 0 and ir.to_onnx_text(model) == before


def test_the_composite_is_the_derivative() -> None:
    """Against c + x*c' in double precision, out to where e^(u^2) overflows."""
    x = np.linspace(-20, 20, 24, dtype=np.float32).reshape(4, 6)
    model = model_of("y = Identity (h)")
    op = Builder(model.graph, "test")
    with op.at("derivative"):
        model.graph.outputs[:] = [op.GeluDerivative(model.graph.inputs[0], name="derivative")]
    model.opset_imports[DOMAIN] = 1
    expand_all(model)
    normal = np.array([(1 + math.erf(float(v) / math.sqrt(2))) / 2 for v in x.ravel()]).reshape(x.shape)
    wide = x.astype(np.float64)
    expected = normal + wide * np.exp(-wide * wide / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(run(model, x), expected, rtol=0, atol=1e-6)
