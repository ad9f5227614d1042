"""Which chains become nodes of the library, and which keep their standard operators."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from tests.passes.blocked.test_blocked_graphs import names_outside, step_graphs
from tests.support.whole_models import MODELS, compiled
from ttac.passes.graph.match import made_by
from ttac.passes.kernels.linked_graphs import LinkedGraphs
from ttac.passes.kernels.reshaped_outputs import cross_before_reshapes
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
    nodes = [node for model in fused.values() for node in model.graph if node.domain]
    found = Counter((node.op_type, node.attributes.get_string("act", "")) for node in nodes)
    chains = Counter((node.op_type, node.attributes.get_string("act1", "")) for node in nodes)
    forward = found["NormForward", act] + 2 * chains["DepthwiseForward", act]
    backward = found["NormBackward", act] + 2 * chains["DepthwiseBackward", act]
    assert forward >= backward > 2


def test_layer_norms_gelus_and_softmax_have_nodes(tmp_path: Path) -> None:
    plain, fused = counted("transformer", tmp_path)
    assert fused["LayerNormForward"] == 5 and fused["LayerNormBackward"] == 4
    assert fused["SoftmaxBackward"] == plain["Softmax"] == 2
    assert fused["ActivationForward"] == fused["ActivationBackward"] == plain["Gelu"] == 2
    assert not fused["Erf"] and not fused["Gelu"]
    assert fused["Add"] < plain["Add"]


def typed(text: str) -> ir.Model:
    """The graph of the text, with the types of all values."""
    parsed = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]> {text}')
    return ir.from_proto(onnx.shape_inference.infer_shapes(parsed))


def test_values_cross_to_later_graphs_before_a_reshape() -> None:
    first = "forward (float[N,4] x) => (float[N,4] y, float[N,2,2] kept) <int64[3] s = {-1, 2, 2}> "
    forward = first + "{ made = Relu(x)  kept = Reshape(made, s)  wide = Neg(kept)  y = Flatten(wide) }"
    backward = "backward (float[N,2,2] kept) => (float[N,2,2] g) { g = Neg(kept) }"
    models = {"forward": typed(forward), "backward": typed(backward)}
    graphs = LinkedGraphs(models)
    cross_before_reshapes(graphs, {"y", "g"})
    graphs.tidy({"y", "g"})
    (crossing,) = [value for value in models["forward"].graph.outputs if value.name != "y"]
    assert [value.name for value in models["backward"].graph.inputs] == [crossing.name] != ["kept"]
    assert made_by(crossing, "Relu") and made_by(models["backward"].graph.outputs[0], "Neg")
    x = np.array([[-1.0, 2.0, 3.0, -4.0]], np.float32)
    sessions = [onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()) for model in models.values()]
    y, kept = sessions[0].run(["y", str(crossing.name)], {"x": x})
    assert np.array_equal(sessions[1].run(None, {str(crossing.name): kept})[0], -np.maximum(x, 0).reshape(1, 2, 2))
    assert np.array_equal(y, -np.maximum(x, 0))


def test_values_that_others_read_stay_reshaped() -> None:
    text = (
        "g (float[N,4] x) => (float[N,2,2] kept) <int64[3] s = {-1, 2, 2}> { made = Relu(x)  kept = Reshape(made, s) }"
    )
    models = {"forward": typed(text)}
    cross_before_reshapes(LinkedGraphs(models), {"kept"})
    assert [value.name for value in models["forward"].graph.outputs] == ["kept"]


def test_the_graphs_that_were_given_stay(tmp_path: Path) -> None:
    bundle = compiled(MODELS["resnet"], tmp_path, batch=8, method="tent")
    graphs = step_graphs(bundle)
    before = operators(graphs)
    with_kernels(graphs, names_outside(bundle))
    assert operators(graphs) == before
