"""Codecs in a net: the gradients are those of the restored values."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.codec_case import NET, NET_WEIGHTS, built, with_means
from tests.support.source_models import saved, source
from tests.support.whole_models import SINGLE, normal, samples, sites_of, spelled
from ttac.passes.adapt.adapt_norms import adapt_norms
from ttac.passes.differentiate.joint import differentiate_loss
from ttac.passes.graph.execute import run
from ttac.passes.partition.partition import partition
from ttac.passes.plan.codecs import CODECS
from ttac.passes.plan.decisions import Decision, KeepRatios, keep_as, nbytes
from ttac.passes.plan.plan import plan_activations
from ttac.spec import BATCH_STATISTICS

# `levels` is absent: its restored value depends on the gradient that reads it.
LOSSY = [name for name, codec in CODECS.items() if not codec.is_exact and codec.estimate is None]


def read_alone(backward: ir.Model, name: str) -> str:
    """Let every ChannelAffine that reads the input `name` read another one, whose name this returns."""
    x = next(value for value in backward.graph.inputs if value.name == name)
    other = ir.val(f"{name}.alone", x.dtype, x.shape)
    backward.graph.inputs.append(other)
    for use in [use for use in x.uses() if use.node.op_type == "ChannelAffine"]:
        use.node.replace_input_with(use.idx, other)
    return str(other.name)


@pytest.mark.parametrize("keep", [0.25, 1.0])
@pytest.mark.parametrize("name", LOSSY)
def test_the_backward_sees_what_the_codec_gives_back(name: str, keep: float, tmp_path: Path) -> None:
    """Its gradients are those of the exact backward, on the restored values; the logits do not change."""
    model = normal(saved(source(NET, NET_WEIGHTS), tmp_path))
    made = adapt_norms(model, sites_of(model), BATCH_STATISTICS, {}, trains=True)
    joint = differentiate_loss(model, model.graph.outputs[0], "entropy", made.parameters)
    batch, n = 64, 5

    def decide(value: ir.Value, half: Set[ir.Node]) -> Decision:
        if value.dtype == ir.DataType.BOOL:
            return keep_as(value, "bits", batch)
        large = value.dtype == SINGLE and nbytes(value, batch) > 16384
        row = keep_as(value, name if large else "dense", batch, "", keep)
        return replace(row, layers=(0,)) if large and CODECS[name].drops else row

    shares = KeepRatios("shares", np.array([keep], np.float32), False)
    plan = plan_activations(joint.model.graph, joint.backward, list(joint.model.graph.inputs), batch, decide, shares)
    halves, exact = (partition(joint.model, [joint.logits], joint.gradients, p) for p in (plan, plan.exactly()))
    assert halves.backward is not None and exact.backward is not None
    lossy = [row for row in plan.decisions if row.how == name]
    assert len(lossy) == 2 and sum(row.how == "bits" for row in plan.decisions) == 2
    feeds = {"x": samples((6, 8, 8), n), **{tensor.name: tensor.initial for tensor in made.state}}
    forward, plain = (run(spelled(half.forward), feeds) for half in (halves, exact))
    np.testing.assert_allclose(forward["y"], plain["y"], rtol=1e-5, atol=1e-6)
    given = dict(plain)
    for row in lossy:
        given[row.value] = built(name, (6, 8, 8))(plain[row.value], keep)["restored"]
        assert np.abs(given[row.value] - plain[row.value]).max() > 0 or name in ("topk", "sparse")
        if CODECS[name].readers and keep < 1:
            given[read_alone(exact.backward, row.value)] = np.float32(with_means(plain[row.value], 64))
    found = run(spelled(halves.backward), {**feeds, **forward})
    expected = run(spelled(exact.backward), {**feeds, **given})
    length = np.sqrt(sum(float((expected[str(g.name)] ** 2).sum()) for g in joint.gradients))
    for gradient in joint.gradients:
        apart = np.linalg.norm(found[str(gradient.name)] - expected[str(gradient.name)])
        assert apart <= 2e-5 * length, gradient.name
