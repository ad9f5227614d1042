"""Codecs in a net: the gradients are those of the restored values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.support.codec_case import built, with_means
from tests.support.kept_net import kept_net
from tests.support.whole_models import spelled
from ttac.passes.graph.execute import run
from ttac.passes.plan.codecs import CODECS

# `levels` is absent: its restored value depends on the gradient that reads it.
LOSSY = [name for name, codec in CODECS.items() if not codec.is_exact and codec.estimate is None]


def read_alone(backward: ir.Model, name: str) -> str:
    """Give every ChannelAffine that reads the input `name` another input, and return the name of that input."""
    x = next(value for value in backward.graph.inputs if value.name == name)
    other = ir.val(f"{name}.alone", x.dtype, x.shape)
    backward.graph.inputs.append(other)
    for use in [use for use in x.uses() if use.node.op_type == "ChannelAffine"]:
        use.node.replace_input_with(use.idx, other)
    return str(other.name)


@pytest.mark.parametrize("keep", [0.25, 1.0])
@pytest.mark.parametrize("name", LOSSY)
def test_the_backward_reads_the_restored_values(name: str, keep: float, tmp_path: Path) -> None:
    """Its gradients are those of the exact backward, on the restored values; the logits do not change."""
    net = kept_net(name, keep, tmp_path)
    halves, exact, feeds = net.halves, net.exact, net.feeds
    lossy = [row for row in net.plan.decisions if row.how == name]
    assert len(lossy) == 2 and sum(row.how == "bits" for row in net.plan.decisions) == 2
    forward, plain = (run(spelled(half.forward), feeds) for half in (halves, exact))
    np.testing.assert_allclose(forward["y"], plain["y"], rtol=1e-5, atol=1e-6)
    given = dict(plain)
    for row in lossy:
        given[row.value] = built(name, (6, 8, 8))(plain[row.value], keep)["restored"]
        assert np.abs(given[row.value] - plain[row.value]).max() > 0 or name in ("topk", "sparse", "channels")
        if CODECS[name].readers and keep < 1:
            given[read_alone(exact.backward, row.value)] = np.float32(with_means(plain[row.value], 64))
    found = run(spelled(halves.backward), {**feeds, **forward})
    expected = run(spelled(exact.backward), {**feeds, **given})
    gradients = [str(gradient.name) for gradient in net.joint.gradients]
    length = np.sqrt(sum(float((expected[gradient] ** 2).sum()) for gradient in gradients))
    for gradient in gradients:
        assert np.linalg.norm(found[gradient] - expected[gradient]) <= 2e-5 * length, gradient
