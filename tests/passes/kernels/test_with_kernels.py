"""Which chains become nodes of the library, and which keep their standard operators."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from tests.passes.blocked.test_blocked_graphs import names_outside, step_graphs
from tests.support.whole_models import MODELS, compiled
from ttac.passes.kernels.with_kernels import with_kernels


def counted(name: str, folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Operators of the step of `tent` before and after the rewriting."""
    bundle = compiled(MODELS[name], folder, batch=8, method="tent")
    graphs = step_graphs(bundle)
    return operators(graphs), operators(with_kernels(graphs, names_outside(bundle)))


def operators(graphs: dict[str, ir.Model]) -> Counter[str]:
    return Counter(node.op_type for model in graphs.values() for node in model.graph)


@pytest.mark.parametrize("name", ["resnet", "resnet_bottleneck", "resnext"])
def test_every_norm_and_pool_of_a_convnet_has_a_node(name: str, tmp_path: Path) -> None:
    plain, fused = counted(name, tmp_path)
    assert fused["NormForward"] == fused["NormBackward"] > 5
    assert fused["MaxPoolBackward"] == plain["ScatterElements"] and not fused["ScatterElements"]


@pytest.mark.parametrize(("name", "act"), [("efficientnet", "silu"), ("mobilenet_v3", "hardswish")])
def test_smooth_activations_are_part_of_their_norm(name: str, act: str, tmp_path: Path) -> None:
    bundle = compiled(MODELS[name], tmp_path, batch=8, method="tent")
    fused = with_kernels(step_graphs(bundle), names_outside(bundle))
    nodes = [node for model in fused.values() for node in model.graph if node.op_type.startswith("Norm")]
    found = Counter((node.op_type, node.attributes.get_string("act", "")) for node in nodes)
    assert found["NormBackward", act] > 2
    assert found["NormForward", act] >= found["NormBackward", act]


def test_layer_norms_gelus_and_softmax_have_nodes(tmp_path: Path) -> None:
    plain, fused = counted("transformer", tmp_path)
    assert fused["LayerNormForward"] == 5 and fused["LayerNormBackward"] == 4
    assert fused["SoftmaxBackward"] == plain["Softmax"] == 2
    assert fused["ActivationForward"] == fused["ActivationBackward"] == plain["Gelu"] == 2
    assert not fused["Erf"] and not fused["Gelu"]
    assert fused["Add"] < plain["Add"]


def test_the_graphs_that_were_given_stay(tmp_path: Path) -> None:
    bundle = compiled(MODELS["resnet"], tmp_path, batch=8, method="tent")
    graphs = step_graphs(bundle)
    before = operators(graphs)
    with_kernels(graphs, names_outside(bundle))
    assert operators(graphs) == before
