"""The node for a norm's gradient also adds the gradient of a skip connection, where that waits for no result of the node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import load_file

from tests.passes.blocked.test_blocked_graphs import check_numbers, names_outside, step_graphs
from tests.support.whole_models import MODELS, compiled
from ttac.passes.blocked.block_graphs import BlockedGraphs, block_graphs
from ttac.passes.graph.shapes import known_dims
from ttac.passes.kernels.linked_graphs import MORE_OF_BACKWARD, version_of
from ttac.passes.kernels.waits import Waits

CHANNELS, SIDE = 8, 24


def nodes(graphs: Mapping[str, ir.Model], op_type: str) -> list[ir.Node]:
    """The nodes of one operator in the backward."""
    models = [model for name, model in graphs.items() if name.startswith("backward")]
    return [node for model in models for node in model.graph if node.op_type == op_type]


def sums_of_maps(graphs: Mapping[str, ir.Model]) -> list[ir.Node]:
    return [node for node in nodes(graphs, "Add") if len(known_dims(node.inputs[0])) == 4]


def with_more(graphs: Mapping[str, ir.Model]) -> list[ir.Node]:
    return [node for node in nodes(graphs, "NormBackward") if len(node.inputs) > MORE_OF_BACKWARD]


def blocked(folder: Path) -> BlockedGraphs:
    weights = set(load_file(folder / "weights.safetensors"))
    return block_graphs(step_graphs(folder, kernels=True), 4, weights, names_outside(folder), kernels=True)


class Net:
    """Nodes of a graph, and random weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self._random = np.random.default_rng(0)

    def weight(self, name: str, *shape: int) -> str:
        self.weights[name] = self._random.uniform(0.1, 0.5, shape).astype(np.float32)
        return name

    def add(self, op_type: str, inputs: list[str], **attributes: list[int]) -> str:
        """Add a node, and return the name of its output."""
        name = f"{op_type}{len(self.nodes)}".lower()
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def conv(self, x: str, inputs: int = CHANNELS) -> str:
        kernel = self.weight(f"w{len(self.nodes)}", CHANNELS, inputs, 3, 3)
        return self.add("Conv", [x, kernel], kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def norm(self, x: str) -> str:
        parameters = [self.weight(f"{name}{len(self.nodes)}", CHANNELS) for name in ("scale", "bias", "mean", "var")]
        return self.add("BatchNormalization", [x, *parameters])


def skip_over_norm(path: Path, *, rectified: bool) -> Path:
    """Write a net with the block norm(x) + conv(x) between two other norms; `rectified` puts a Relu behind the block."""
    net = Net()
    x = net.conv(net.add("Relu", [net.norm(net.conv("x", 3))]))
    y = net.add("Add", [net.norm(x), net.conv(x)])
    y = net.add("Relu", [y]) if rectified else y
    pooled = net.add("GlobalAveragePool", [net.add("Relu", [net.norm(net.conv(y))])])
    logits = net.add("Gemm", [net.add("Flatten", [pooled]), net.weight("head", CHANNELS, 5)])
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", ["N", 3, SIDE, SIDE]), (logits, ["N", 5]))
    ]
    held = [numpy_helper.from_array(array, name) for name, array in net.weights.items()]
    graph = helper.make_graph(net.nodes, "skip", ports[:1], ports[1:], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_a_pre_activation_block_has_no_sum_of_gradients_left(tmp_path: Path) -> None:
    folder = compiled(MODELS["wide_resnet"], tmp_path, batch=8, method="tent")
    graphs = step_graphs(folder, kernels=True)
    (node,) = with_more(graphs)
    assert known_dims(node.inputs[MORE_OF_BACKWARD]) == known_dims(node.outputs[0])
    read = {id(value) for each in sums_of_maps(graphs) for value in each.inputs}
    assert id(node.outputs[0]) not in read


def test_a_node_that_adds_a_gradient_needs_version_5(tmp_path: Path) -> None:
    versions = {}
    for name in ("wide_resnet", "resnet"):
        folder = tmp_path / name
        folder.mkdir()
        graphs = step_graphs(compiled(MODELS[name], folder, batch=8, method="tent"), kernels=True)
        versions[name] = max(version_of(model.graph) for model in graphs.values())
    assert versions == {"wide_resnet": 5, "resnet": 3}


@pytest.mark.parametrize("rectified", [False, True])
def test_a_gradient_that_waits_for_the_node_stays_outside(rectified: bool, tmp_path: Path) -> None:
    model = skip_over_norm(tmp_path / "skip.onnx", rectified=rectified)
    folder = compiled(model, tmp_path, batch=8, method="tent")
    graphs = step_graphs(folder, kernels=True)
    assert len(with_more(graphs)) == (0 if rectified else 1)
    assert len(sums_of_maps(graphs)) == rectified
    assert sum(bool(node.outputs[0].name) for node in nodes(graphs, "NormBackward")) == 2
    assert any(len(node.outputs) > 3 for node in nodes(graphs, "NormBackward")) == rectified
    check_numbers(folder, kernels=True)


def test_two_nodes_never_wait_for_each_other() -> None:
    first, second = ir.Value(name="first"), ir.Value(name="second")
    of_first, of_second = (ir.node("Relu", [value]).outputs[0] for value in (first, second))
    waits = Waits()
    assert not waits.any_of(of_second, [first])
    waits.add([second], of_first)
    assert waits.any_of(of_second, [first]) and not waits.any_of(of_first, [second])


def test_phases_are_added_before_they_are_interleaved(tmp_path: Path) -> None:
    folder = compiled(MODELS["wide_resnet"], tmp_path, batch=8, method="tent")
    made = blocked(folder)
    (joined,) = nodes(made.graphs, "Interleave")
    first = joined.inputs[0].producer() if joined.inputs[0] is not None else None
    assert first is not None and first.op_type == "Conv" and len(first.inputs) == 4
    strided = [node for node in sums_of_maps(made.graphs) if known_dims(node.inputs[0])[1] == 12]
    assert made.kernels == 5 and not strided
