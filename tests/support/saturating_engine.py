"""Whether the engine adds pairs of 8-bit products in 16 bits, which overflow: x86-64 without VNNI instructions."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper


@cache
def products_saturate() -> bool:
    """Return whether unsigned times signed 8-bit numbers of full size give a wrong sum."""
    weight = numpy_helper.from_array(np.full((64, 16), 127, np.int8), "w")
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [16, 64])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [16, 16])
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "product", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"x": np.full((16, 64), 255, np.uint8)})
    return bool((np.asarray(product) != 64 * 255 * 127).any())
