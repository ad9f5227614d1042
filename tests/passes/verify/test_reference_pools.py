"""The max pooling of the float64 evaluation against that of PyTorch and of the onnx package."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from ttac.passes.verify.reference_pools import GlobalMaxPool, MaxPool

SPATIAL = {1: (11,), 2: (9, 7), 3: (5, 6, 4)}


def _model(op_type: str = "MaxPool", **attributes: object) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in "xy"]
    graph = helper.make_graph([helper.make_node(op_type, ["x"], ["y"], **attributes)], "one", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize("axes", SPATIAL)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("dilation", [1, 2])
def test_max_pool(axes: int, stride: int, padding: int, dilation: int) -> None:
    # PyTorch is the oracle: the package's own operator fails at the border for some of these shapes.
    torch = pytest.importorskip("torch")
    pool = {1: torch.nn.functional.max_pool1d, 2: torch.nn.functional.max_pool2d, 3: torch.nn.functional.max_pool3d}
    x = np.random.default_rng(1).normal(size=(2, 3, *SPATIAL[axes])) - 5
    shape = {"strides": [stride] * axes, "dilations": [dilation] * axes, "pads": [padding] * 2 * axes}
    model = _model(kernel_shape=[2] * axes, **shape)
    fast = ReferenceEvaluator(model, new_ops=[MaxPool]).run(None, {"x": x})[0]
    right = pool[axes](torch.from_numpy(x), 2, stride, padding, dilation)
    np.testing.assert_array_equal(fast, right.numpy())


@pytest.mark.parametrize("attributes", [{"ceil_mode": 1}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "VALID"}])
def test_other_padding_is_left_to_the_package(attributes: dict[str, object]) -> None:
    x = np.random.default_rng(2).normal(size=(2, 3, 8, 8))
    model = _model(kernel_shape=[3, 3], strides=[2, 2], **attributes)
    fast = ReferenceEvaluator(model, new_ops=[MaxPool]).run(None, {"x": x})[0]
    np.testing.assert_array_equal(fast, ReferenceEvaluator(model).run(None, {"x": x})[0])


@pytest.mark.parametrize("axes", SPATIAL)
def test_global_max_pool_reads_all_axes_behind_the_channels(axes: int) -> None:
    x = np.random.default_rng(3).normal(size=(2, 3, *SPATIAL[axes]))
    found = ReferenceEvaluator(_model("GlobalMaxPool"), new_ops=[GlobalMaxPool]).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, x.reshape(2, 3, -1).max(2).reshape(2, 3, *[1] * axes))
