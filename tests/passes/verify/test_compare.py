"""The bounds of the verification, and the errors that it finds."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import ttac
from tests.support.whole_models import MODELS, SINGLE, Arrays
from ttac import finish
from ttac.errors import VerificationError
from ttac.passes.graph.builder import Builder
from ttac.passes.verify.compare import Differences, compare_halves, relative


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
    with pytest.raises(VerificationError, match="gradients halves are not numbers"):
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
