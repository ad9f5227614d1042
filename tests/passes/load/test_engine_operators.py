"""Fused operators of onnxruntime, written as standard operators: both forms give the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from ttac.errors import UnsupportedError
from ttac.passes.graph.execute import run
from ttac.passes.load.engine_operators import RULES, STANDARD
from ttac.passes.load.engine_rules import unfuse
from ttac.passes.load.model_file import load

RANDOM = np.random.default_rng(5)
Arrays = dict[str, np.ndarray]


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def whole(low: int, high: int, *shape: int, dtype: Any = np.int32) -> np.ndarray:
    return RANDOM.integers(low, high, shape).astype(dtype)


X, IMAGE, SEQUENCE = floats(3, 4), floats(2, 3, 6, 6), floats(2, 5, 8)
KERNEL, HALF = {"w": floats(4, 3, 3, 3), "b": floats(4)}, {"alpha": 0.5}
NORM = {"scale": floats(8), "shift": floats(8)}
GRID: Arrays = {"s": np.array(0.02, np.float32), "z": np.array(120, np.uint8)}
MAPS = whole(0, 255, 2, 3, 6, 6, dtype=np.uint8)
KERNELS: Arrays = {  # small kernels: sums of two products in 16 bits overflow in some engines
    "k": whole(-60, 60, 4, 3, 3, 3, dtype=np.int8), "ks": np.array([0.01, 0.02, 0.015, 0.03], np.float32),
    "kz": np.zeros(4, np.int8), "kb": whole(-9000, 9000, 4), "z8": np.array(3, np.int8),
    "m": whole(-60, 60, 4, 6, dtype=np.int8), "ms": np.linspace(0.01, 0.02, 6).astype(np.float32),
    "mz": np.zeros(6, np.int8), "mb": whole(-9000, 9000, 6),
}  # fmt: skip
BYTES = whole(0, 255, 2, 3, 4, 4, dtype=np.uint8)
TABLES = {"words": floats(20, 8), "places": floats(6, 8), "kinds": floats(2, 8), **NORM}
HEADS: Arrays = {"w": floats(8, 24), "b": floats(24)}
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
ROUNDED: Arrays = {"w": whole(-90, 90, 4, 6, dtype=np.int8), "ws": np.array(0.01, np.float32)}
EMBEDDED = {"ids": whole(0, 20, 2, 5), "segments": whole(0, 2, 2, 5)}
IDS = ["ids", "segments", "words", "places", "kinds", "scale", "shift"]

CASES: dict[str, tuple[str, list[str], Arrays, Arrays, dict[str, Any]]] = {
    "relu": ("FusedConv", ["x", "w", "b"], {"x": IMAGE}, KERNEL, {"activation": "Relu", "pads": [1, 1, 1, 1]}),
    "sum": ("FusedConv", ["x", "w", "b", "r"], {"x": IMAGE, "r": floats(2, 4, 4, 4)}, KERNEL, {"activation": "Relu"}),
    "leaky": ("FusedConv", ["x", "w"], {"x": IMAGE}, {"w": KERNEL["w"]},
              {"activation": "LeakyRelu", "activation_params": [0.2]}),
    "clip": ("FusedConv", ["x", "w"], {"x": IMAGE}, {"w": KERNEL["w"]},
             {"activation": "Clip", "activation_params": [0.0, 0.5]}),
    "gemm": ("FusedGemm", ["x", "w", "b"], {"x": X}, {"w": floats(5, 4), "b": floats(5)},
             {"activation": "Relu", "transB": 1}),
    "matmul": ("FusedMatMul", ["x", "w"], {"x": floats(2, 3, 4)}, {"w": floats(2, 5, 4)}, {"transB": 1, "alpha": 0.5}),
    "gelu": ("Gelu", ["x"], {"x": X}, {}, {}),
    "bias gelu": ("BiasGelu", ["x", "b"], {"x": X}, {"b": floats(4)}, {}),
    "fast gelu": ("FastGelu", ["x", "b"], {"x": X}, {"b": floats(4)}, {}),
    "quick gelu": ("QuickGelu", ["x"], {"x": X}, {}, {"alpha": 1.5}),
    "skip": ("SkipLayerNormalization", ["x", "r", "scale", "shift", "b"], {"x": SEQUENCE, "r": floats(2, 5, 8)},
             {**NORM, "b": floats(8)}, {"epsilon": 1e-5}),
    "embed": ("EmbedLayerNormalization", IDS, EMBEDDED, TABLES, {"epsilon": 1e-5}),
    "attention": ("Attention", ["x", "w", "b"], {"x": SEQUENCE}, HEADS, {"num_heads": 2}),
    "mask": ("Attention", ["x", "w", "b", "m"], {"x": SEQUENCE, "m": MASK}, HEADS, {"num_heads": 2}),
    "integer add": ("QLinearAdd", ["x", "s", "z", "x", "s", "z", "s", "z"], {"x": BYTES}, GRID, {}),
    "integer mul": ("QLinearMul", ["x", "s", "z", "x", "s", "z", "s", "z"], {"x": BYTES}, GRID, {}),
    "integer sigmoid": ("QLinearSigmoid", ["x", "s", "z", "s", "z"], {"x": BYTES}, GRID, {}),
    "integer leaky": ("QLinearLeakyRelu", ["x", "s", "z", "s", "z"], {"x": BYTES}, GRID, {"alpha": 0.1}),
    "integer softmax": ("QLinearSoftmax", ["x", "s", "z", "s", "z"], {"x": BYTES}, GRID, {"axis": 1, "opset": 13}),
    "integer where": ("QLinearWhere", ["c", "x", "s", "z", "x", "s", "z", "s", "z"], {"c": BYTES > 99, "x": BYTES}, GRID, {}),
    "integer pool": ("QLinearGlobalAveragePool", ["x", "s", "z", "s", "z"], {"x": BYTES}, GRID, {}),
    "integer concat": ("QLinearConcat", ["s", "z", "x", "s", "z", "x", "s", "z"], {"x": BYTES}, GRID, {"axis": 1}),
    "integer convolution": ("QLinearConv", ["x", "s", "z", "k", "ks", "kz", "s", "z", "kb"], {"x": MAPS}, {**GRID, **KERNELS},
                            {"pads": [1, 1, 1, 1]}),
    "one scale": ("QLinearConv", ["x", "s", "z", "k", "s", "z8", "s", "z"], {"x": MAPS}, {**GRID, **KERNELS}, {}),
    "integer product": ("QLinearMatMul", ["x", "s", "z", "m", "ms", "mz", "s", "z"], {"x": whole(0, 255, 3, 4, dtype=np.uint8)},
                        {**GRID, **KERNELS}, {}),
    "integer gemm": ("QGemm", ["x", "s", "z", "m", "ms", "mz", "mb", "s", "z"], {"x": whole(0, 255, 3, 4, dtype=np.uint8)},
                     {**GRID, **KERNELS}, {}),
    "gemm to float": ("QGemm", ["x", "s", "z", "m", "s", "z8", "mb"], {"x": whole(0, 255, 3, 4, dtype=np.uint8)},
                      {**GRID, **KERNELS}, {}),
    "dynamic": ("DynamicQuantizeMatMul", ["x", "w", "ws"], {"x": X}, ROUNDED, {}),
    "to float": ("MatMulIntegerToFloat", ["x", "w", "s", "ws"], {"x": whole(0, 255, 3, 4, dtype=np.uint8)},
                 {**ROUNDED, **GRID}, {}),
}  # fmt: skip


def fused(name: str, opset: int) -> onnx.ModelProto:
    """A model of one fused operator; its output has the type that the operator gives."""
    kind, inputs, feeds, constants, attributes = CASES[name]
    outputs = ["y", "lengths"] if kind == "EmbedLayerNormalization" else ["y"]
    domain = "" if kind in STANDARD else "com.microsoft"
    node = helper.make_node(kind, inputs, outputs, domain=domain, name="fused", **attributes)
    types = [
        helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for key, a in feeds.items()
    ]
    tensors = [onnx.numpy_helper.from_array(array, key) for key, array in constants.items() if key in inputs]
    rounds = kind.startswith("QLinear") or (kind == "QGemm" and len(inputs) > 7)
    dtype = TensorProto.UINT8 if rounds else TensorProto.FLOAT
    graph = helper.make_graph([node], "g", types, [helper.make_tensor_value_info("y", dtype, None)], tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("name", sorted(CASES))
def test_both_forms_give_the_same_results(name: str, opset: int) -> None:
    proto, feeds = fused(name, opset), CASES[name][2]
    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), plain, providers=["CPUExecutionProvider"])
    (expected,) = session.run(["y"], feeds)
    model = ir.from_proto(proto)
    assert unfuse(model) == [CASES[name][0]]
    assert all(not node.domain for node in model.graph)
    model.opset_imports.pop("com.microsoft")
    found = run(model, feeds, optimised=False)["y"]
    if expected.dtype == np.uint8:  # float arithmetic may round a tie the other way
        assert np.abs(found.astype(int) - expected).max() <= 1
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_every_rule_has_a_case() -> None:
    known = {kind for kind, *_ in CASES.values()}
    assert set(RULES) - known == {"TransposeMatMul", "QLinearAveragePool", "NhwcConv", "NhwcFusedConv"}


@pytest.mark.parametrize("kind", ["NhwcConv", "NhwcFusedConv"])
@pytest.mark.parametrize(("order", "stated"), [((0, 1, 2, 3), False), ((0, 2, 3, 1), True)])
def test_convolutions_with_channels_last(kind: str, order: tuple[int, ...], stated: bool) -> None:
    """No engine on this processor executes them, so PyTorch gives the results; kernels lie in both orders in files."""
    torch = pytest.importorskip("torch")
    x, kernel, bias = floats(2, 6, 7, 4), floats(6, 2, 3, 3), floats(6)
    attributes: dict[str, Any] = {"group": 2, "strides": [2, 1], "pads": [1, 0, 1, 0]}
    attributes |= {"kernel_shape": [3, 3]} if stated else {}
    attributes |= {"activation": "Relu"} if kind == "NhwcFusedConv" else {}
    node = helper.make_node(kind, ["x", "w", "b"], ["y"], domain="com.microsoft", name="fused", **attributes)
    info = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x.shape), ("y", None))
    ]
    tensors = [
        onnx.numpy_helper.from_array(np.ascontiguousarray(a), n)
        for a, n in ((kernel.transpose(order), "w"), (bias, "b"))
    ]
    graph = helper.make_graph([node], "g", info[:1], info[1:], tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert unfuse(model) == [kind]
    model.opset_imports.pop("com.microsoft")
    images, weight, shift = (torch.from_numpy(a) for a in (x.transpose(0, 3, 1, 2), kernel, bias))
    expected = torch.nn.functional.conv2d(images, weight, shift, (2, 1), (1, 0), 1, 2)
    expected = expected.relu() if kind == "NhwcFusedConv" else expected
    np.testing.assert_allclose(run(model, {"x": x})["y"], expected.numpy().transpose(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


def test_a_kernel_whose_order_is_unclear_is_refused() -> None:
    x, kernel = floats(1, 5, 5, 3), floats(6, 3, 3, 3)
    node = helper.make_node("NhwcConv", ["x", "w"], ["y"], domain="com.microsoft", name="fused")
    info = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x.shape), ("y", None))
    ]
    graph = helper.make_graph([node], "g", info[:1], info[1:], [onnx.numpy_helper.from_array(kernel, "w")])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    assert unfuse(model) == [] and [node.op_type for node in model.graph] == ["NhwcConv"]


def test_a_variant_without_a_rule_stays_and_is_refused(tmp_path: Path) -> None:
    proto = fused("attention", 18)
    proto.graph.node[0].attribute.append(helper.make_attribute("unidirectional", 1))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5, 8]))
    onnx.save(proto, str(tmp_path / "m.onnx"))
    with pytest.raises(UnsupportedError, match=r"com\.microsoft\.Attention"):
        load(tmp_path / "m.onnx")
