"""The operators of the gradient tests: at least one graph per rule, with the difficult cases of each operator."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.gradient_case import Case, Floats, N, Shape, case_of

CASES: list[Case] = []


def case(op: str, label: str, *inputs: Any, **options: Any) -> None:
    CASES.append(case_of(op, *inputs, label=label, **options))


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def apart(*shape: int | str) -> Floats:
    return Floats(shape, "apart")


def fixed(*shape: int | str) -> Floats:
    return Floats(shape, "fixed")


def positive(*shape: int | str) -> Floats:
    return Floats(shape, "positive")


X = (N, 3, 4, 5)

# Element by element
for name in ("Add", "Sub", "Mul"):
    case(name, "same shape", X, X)
    case(name, "row over batch", X, (4, 1))
    case(name, "scalar", (), X)
    case(name, "both broadcast", (N, 3, 1, 5), (1, 4, 1))
case("Div", "same shape", X, positive(*X))
case("Div", "scalar divisor", X, positive())
case("Div", "broadcast dividend", (3, 1, 1), positive(*X))
case("Pow", "computed exponent", positive(*X), (5,))
case("Pow", "square", apart(*X), np.array(2.0))
case("Pow", "integer exponent", apart(*X), np.array(3, np.int64))
case("Pow", "negative exponent", positive(*X), np.array(-1.5))
for name in ("Sqrt", "Log", "Reciprocal"):
    case(name, "plain", positive(*X))
for name in ("Exp", "Neg", "Sin", "Cos", "Erf", "Tanh", "Sigmoid", "Softplus", "Identity"):
    case(name, "plain", X)
for name in ("Abs", "Relu", "Softsign", "HardSwish", "Mish", "Selu"):
    case(name, "plain", apart(*X))
for name in ("Sum", "Mean"):
    case(name, "one", X)
    case(name, "three, broadcast", X, (4, 5), (N, 1, 1, 1))
for name in ("Max", "Min"):
    case(name, "one", apart(*X))
    case(name, "two", apart(*X), apart(*X))
    case(name, "scalar", apart(*X), np.array(0.3))
    case(name, "three, broadcast", apart(*X), apart(4, 1), apart(N, 1, 1, 1))
case("Where", "same shape", np.array([True, False, True, False, True]), X, X)
case("Where", "broadcast", np.array([[True], [False], [True], [False]]), (N, 3, 1, 5), (5,))
case("Cast", "to float", X, to=1, oracle="onnxruntime", note="the result is rounded to float32")
case("Dropout", "inference", X)
case("Dropout", "mode given", X, np.array(0.5), np.array(False), outputs=2, used=(0,))
case("Clip", "relu6", apart(*X), np.array(0.0), np.array(1.5))
case("Clip", "low only", apart(*X), np.array(-0.5))
case("Clip", "high only", apart(*X), None, np.array(0.5))
case("Clip", "trained bounds", apart(*X), Floats((), "low"), Floats((), "high"))
case("Clip", "no bounds", apart(*X))
case("LeakyRelu", "plain", apart(*X), alpha=0.2)
case("LeakyRelu", "negative slope", apart(*X), alpha=-0.5)
case("PRelu", "per channel", apart(*X), (3, 1, 1))
case("PRelu", "one slope", apart(*X), (1,))
case("Elu", "plain", apart(*X))
case("Elu", "alpha", apart(*X), alpha=0.6)
case("Celu", "alpha", apart(*X), alpha=1.7, oracle="onnxruntime", note="ONNX has it in float32 only")
case("HardSigmoid", "plain", apart(*X))
case("HardSigmoid", "mobilenet", apart(*X), alpha=1 / 6, beta=0.5)
case("Gelu", "exact", X, opset=20, oracle="onnxruntime", note="onnx.reference rounds Erf to float32")
case("ExactGelu", "whole range", X, oracle="onnxruntime", note="onnx.reference rounds Erf to float32")
case("Gelu", "tanh", X, opset=20, approximate="tanh")
for name in ("Softmax", "LogSoftmax"):
    case(name, "last axis", X)
    case(name, "channels", X, axis=1)
    case(name, "negative axis", X, axis=-2)

# Matrix products
for trans_a in (0, 1):
    for trans_b in (0, 1):
        a, b = ((4, N) if trans_a else (N, 4)), ((6, 4) if trans_b else (4, 6))
        case("Gemm", f"{trans_a}{trans_b}", a, b, (6,), transA=trans_a, transB=trans_b, alpha=0.7, beta=1.3)
case("Gemm", "no bias", (N, 4), (4, 6))
case("Gemm", "scalar bias", (N, 4), (4, 6), ())
case("Gemm", "column bias", (N, 4), (4, 6), (N, 1))
case("Gemm", "full bias", (N, 4), (4, 6), (N, 6), beta=0.5)
case("MatMul", "matrices", (N, 4), (4, 6))
case("MatMul", "weights", (N, 3, 4), (4, 6))
case("MatMul", "attention", (N, 2, 3, 4), (N, 2, 4, 5))
case("MatMul", "left broadcast", (3, 4), (N, 2, 4, 5))
case("MatMul", "right broadcast", (N, 2, 3, 4), (1, 4, 5))
case("MatMul", "both broadcast", (N, 1, 3, 4), (2, 4, 5))
case("MatMul", "vectors", (4,), (4,))
case("MatMul", "row", (4,), (N, 2, 4, 5))
case("MatMul", "row by matrix", (4,), (4, 5))
case("MatMul", "column", (N, 2, 3, 4), (4,))
case("MatMul", "matrix by column", (N, 4), (4,))
case("Einsum", "matrices", (N, 4), (4, 6), equation="ij,jk->ik")
case("Einsum", "attention", (N, 3, 2, 4), (N, 5, 2, 4), equation="bqhd,bkhd->bhqk")
case("Einsum", "implicit", (N, 4), (6, 4), equation="nc, oc")
case("Einsum", "ellipsis", (N, 2, 3, 4), (4, 5), equation="...c,cd->...d")
case("Einsum", "left alone", (N, 4, 3), (4, 6), equation="nij,ik->nk")
case("Einsum", "outer", (N, 4), (5,), equation="na,b->bna")
case("Einsum", "permute", (N, 3, 4), equation="nij->jni")
case("Einsum", "sum", (N, 3, 4), equation="nij->j")

# Convolutions
case("Conv", "plain", (N, 3, 6, 5), (4, 3, 3, 3), (4,), pads=[1, 1, 1, 1], torch=True)
case("Conv", "no padding", (N, 2, 6, 5), (3, 2, 3, 2), torch=True)
case("Conv", "pointwise", (N, 3, 4, 4), (5, 3, 1, 1), torch=True)
case("Conv", "pointwise, strided", (N, 3, 6, 5), (5, 3, 1, 1), strides=[2, 2], torch=True)
case("Conv", "pointwise, grouped", (N, 4, 4, 4), (6, 2, 1, 1), group=2, torch=True)
case("Conv", "strided", (N, 3, 6, 7), (4, 3, 3, 3), (4,), strides=[2, 2], pads=[1, 1, 1, 1], torch=True)
case("Conv", "strided, remainders", (N, 2, 8, 9), (3, 2, 3, 3), strides=[3, 4], torch=True)
case("Conv", "stem", (N, 3, 11, 12), (4, 3, 7, 7), strides=[2, 2], pads=[3, 3, 3, 3], torch=True)
case("Conv", "grouped", (N, 4, 5, 6), (6, 2, 3, 3), (6,), group=2, pads=[1, 1, 1, 1], torch=True)
case("Conv", "grouped, strided", (N, 4, 6, 7), (6, 2, 3, 3), group=2, strides=[2, 2], pads=[1, 1, 1, 1], torch=True)
case("Conv", "depthwise", (N, 4, 5, 6), (4, 1, 3, 3), (4,), group=4, pads=[1, 1, 1, 1], torch=True)
case("Conv", "depthwise, strided", (N, 4, 7, 6), (4, 1, 5, 5), group=4, strides=[2, 2], pads=[2, 2, 2, 2], torch=True)
case("Conv", "depth multiplier", (N, 3, 5, 6), (6, 1, 3, 3), group=3, pads=[1, 1, 1, 1], torch=True)
case("Conv", "dilated", (N, 2, 8, 9), (3, 2, 3, 3), dilations=[2, 3], pads=[2, 3, 2, 3], torch=True)
case("Conv", "dilated, strided", (N, 2, 9, 8), (3, 2, 2, 3), dilations=[3, 2], strides=[2, 3], pads=[1, 2, 1, 2])
case("Conv", "asymmetric pads", (N, 2, 5, 6), (3, 2, 3, 2), pads=[0, 1, 2, 0])
case("Conv", "asymmetric pads, strided", (N, 2, 6, 6), (3, 2, 3, 3), pads=[0, 0, 1, 1], strides=[2, 2])
case("Conv", "pads beyond the kernel", (N, 2, 4, 5), (3, 2, 2, 1), pads=[3, 2, 2, 1])
case("Conv", "pads beyond the kernel, strided", (N, 2, 5, 5), (3, 2, 2, 2), pads=[3, 2, 3, 3], strides=[2, 3])
case("Conv", "pointwise, padded", (N, 2, 4, 5), (3, 2, 1, 1), pads=[1, 0, 1, 2])
case("Conv", "one stride", (N, 2, 6, 5), (3, 2, 3, 3), strides=[2, 1], pads=[1, 1, 1, 1], torch=True)
for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
    case("Conv", mode, (N, 2, 6, 7), (3, 2, 4, 3), auto_pad=mode, strides=[2, 2])
    case("Conv", f"{mode}, stride 1", (N, 2, 6, 7), (3, 2, 4, 3), auto_pad=mode)
case("Conv", "1d", (N, 3, 9), (4, 3, 3), (4,), pads=[1, 1], torch=True)
case("Conv", "1d, strided", (N, 3, 9), (4, 3, 4), strides=[3], pads=[1, 1], torch=True)
case("Conv", "3d", (N, 2, 4, 5, 3), (3, 2, 2, 3, 2), (3,), pads=[1, 1, 0, 0, 1, 1])
case("Conv", "3d, strided", (N, 2, 5, 5, 4), (3, 2, 3, 3, 2), strides=[2, 2, 1], pads=[1] * 6, torch=True)
case("Conv", "many channels", (N, 40, 3, 3), (2, 40, 3, 3), pads=[1, 1, 1, 1])
KERNELS = np.random.default_rng(0)
case("Conv", "frozen", (N, 3, 6, 5), KERNELS.standard_normal((4, 3, 3, 2)), (4,), pads=[1, 0, 1, 2])
case("Conv", "frozen, grouped", (N, 4, 6, 5), KERNELS.standard_normal((6, 2, 3, 3)), group=2, dilations=[1, 2])
case("Conv", "frozen, depthwise", (N, 4, 6, 5), KERNELS.standard_normal((4, 1, 3, 3)), group=4, pads=[1, 1, 1, 1])
case("Conv", "frozen, strided", (N, 3, 6, 5), KERNELS.standard_normal((4, 3, 3, 3)), strides=[2, 2], pads=[1, 1, 1, 1])
case("ConvTranspose", "plain", (N, 3, 4, 5), (3, 2, 3, 3), (2,), torch=True)
case("ConvTranspose", "strided", (N, 3, 4, 5), (3, 2, 4, 4), (2,), strides=[2, 2], pads=[1, 1, 1, 1], torch=True)
case("ConvTranspose", "grouped", (N, 4, 4, 3), (4, 3, 3, 3), group=2, strides=[2, 2], pads=[1, 1, 1, 1], torch=True)
case("ConvTranspose", "dilated", (N, 2, 4, 3), (2, 3, 3, 2), dilations=[2, 2], pads=[1, 1, 1, 1], torch=True)
case(
    "ConvTranspose",
    "output padding",
    (N, 2, 4, 3),
    (2, 3, 3, 3),
    strides=[2, 3],
    pads=[1, 1, 1, 1],
    output_padding=[1, 2],
    torch=True,
)
case("ConvTranspose", "asymmetric pads", (N, 2, 4, 3), (2, 3, 3, 3), strides=[2, 2], pads=[0, 1, 1, 0])
case("ConvTranspose", "1d", (N, 2, 5), (2, 3, 4), strides=[2], pads=[1, 1], torch=True)

# Pools
POOL = apart(N, 2, 7, 8)
case("MaxPool", "resnet", POOL, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], torch=True)
case("MaxPool", "vgg", POOL, kernel_shape=[2, 2], strides=[2, 2], torch=True)
case("MaxPool", "stride 1", POOL, kernel_shape=[3, 3], pads=[1, 1, 1, 1], torch=True)
case("MaxPool", "stride 3", POOL, kernel_shape=[2, 3], strides=[3, 3], pads=[0, 1, 1, 1])
case("MaxPool", "dilated", POOL, kernel_shape=[2, 3], dilations=[3, 2], strides=[2, 1], pads=[1, 1, 1, 1], torch=True)
case("MaxPool", "large", apart(N, 1, 9, 9), kernel_shape=[7, 7], strides=[2, 2], pads=[3, 3, 3, 3], torch=True)
case("MaxPool", "indices", POOL, kernel_shape=[3, 3], strides=[2, 2], outputs=2, used=(0,))
case("MaxPool", "one tap", POOL, kernel_shape=[1, 1], strides=[2, 2], torch=True)
case("MaxPool", "SAME_UPPER", POOL, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
case("MaxPool", "ceil", POOL, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, torch=True)
case("MaxPool", "ceil, stride 3", POOL, kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1, torch=True)
case("MaxPool", "1d", apart(N, 2, 9), kernel_shape=[3], strides=[2], pads=[1, 1], torch=True)
case("MaxPool", "3d", apart(N, 2, 4, 5, 6), kernel_shape=[2, 3, 2], strides=[2, 2, 2], pads=[0, 1, 0, 0, 1, 0])
AVERAGE = (N, 2, 7, 8)
case("AveragePool", "vgg", AVERAGE, kernel_shape=[2, 2], strides=[2, 2], torch=True)
case("AveragePool", "overlapping", AVERAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
case("AveragePool", "inception", AVERAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, torch=True)
case("AveragePool", "pads count", AVERAGE, kernel_shape=[3, 2], strides=[2, 3], pads=[1, 1, 1, 0], count_include_pad=1)
case("AveragePool", "ceil", AVERAGE, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1, torch=True)
case("AveragePool", "whole", AVERAGE, kernel_shape=[7, 8], torch=True)
case("AveragePool", "SAME_LOWER", AVERAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")
case("AveragePool", "1d", (N, 2, 9), kernel_shape=[3], strides=[2], pads=[1, 1], count_include_pad=1, torch=True)
case("AveragePool", "3d", (N, 1, 4, 5, 6), kernel_shape=[2, 2, 2], strides=[2, 2, 2])
case("AveragePool", "dilated", AVERAGE, kernel_shape=[2, 3], dilations=[2, 2], pads=[1, 1, 1, 1], opset=19)
for name in ("GlobalAveragePool", "GlobalMaxPool"):
    case(name, "2d", apart(N, 3, 4, 5))
    case(name, "1d", apart(N, 3, 4))

# Reductions
for name in (
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceSumSquare",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
):
    case(name, "space", apart(*X), ints(2, 3))
    case(name, "dropped", apart(*X), ints(-1, 1), keepdims=0)
    case(name, "batch too", apart(*X), ints(0, 2), keepdims=0)
    case(name, "all", apart(*X), keepdims=0)
for name in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"):
    case(name, "nothing", apart(*X), ints(), noop_with_empty_axes=1)
for exclusive in (0, 1):
    for reverse in (0, 1):
        case("CumSum", f"{exclusive}{reverse}", X, np.array(2, np.int64), exclusive=exclusive, reverse=reverse)

# Shapes
case("Reshape", "flatten", X, ints(0, -1))
case("Reshape", "heads", (N, 6, 8), ints(0, 6, 2, 4))
case("Reshape", "batch inferred", (N, 6, 8), ints(-1, 48))
case("Flatten", "plain", X)
case("Flatten", "negative axis", X, axis=-3)
case("Squeeze", "axes", (N, 3, 1, 1), ints(2, 3))
case("Squeeze", "one", (N, 1, 4), ints(-2))
case("Unsqueeze", "axes", (N, 3), ints(1, -1))
case("Transpose", "perm", X, perm=[0, 2, 3, 1])
case("Transpose", "reverse", (3, 4, 5))
case("Expand", "rows", (3, 1, 5), ints(2, 3, 4, 5))
case("Expand", "keeps", (N, 1, 5), ints(1, 4, 1))
case("Tile", "space", X, ints(1, 2, 1, 3))
case("Tile", "nothing", X, ints(1, 1, 1, 1))
case("Concat", "channels", (N, 2, 4), (N, 3, 4), (N, 1, 4), axis=1)
case("Concat", "with constant", (N, 2, 4), (N, 3, 4), Floats((N, 1, 4), "fixed"), axis=-2)
case("Concat", "one", (N, 2, 4), axis=1)
case("Concat", "same twice", (N, 2, 4), (N, 2, 4), axis=2)
case("Split", "even", (N, 6, 4), axis=1, num_outputs=3, outputs=3)
case("Split", "uneven", (N, 6, 4), ints(1, 2, 3), axis=1, outputs=3)
case("Split", "one unused", (N, 6, 4), ints(1, 2, 3), axis=-2, outputs=3, used=(0, 2))
case("Split", "one used", (N, 6, 4), ints(1, 2, 3), axis=1, outputs=3, used=(1,))
case("Slice", "middle", (N, 6, 7), ints(1, 2), ints(5, 6), ints(1, 2))
case("Slice", "steps", (N, 6, 7), ints(1, 0), ints(6, 7), ints(1, 2), ints(2, 3))
case("Slice", "backwards", (N, 6, 7), ints(-1, 5), ints(-(2**40), 0), ints(1, 2), ints(-1, -2))
case("Slice", "negative ends", (N, 6, 7), ints(-5), ints(-1), ints(-1))
case("Slice", "everything", (N, 6, 7), ints(0), ints(2**62), ints(0))
case("Slice", "no axes", (5, 6), ints(1, 1), ints(4, 100))
case("Pad", "constant", (N, 2, 4), ints(0, 0, 1, 0, 0, 2))
case("Pad", "crops", (N, 3, 6), ints(0, -1, 2, 0, 0, -3), oracle="onnxruntime", note="onnx.reference cannot crop")
case("Pad", "axes", (N, 2, 4), ints(1, 2), np.array(0.5), ints(-1))
case("Pad", "reflect", (N, 2, 4, 5), ints(0, 0, 1, 2, 0, 0, 3, 1), mode="reflect")
case("Pad", "edge", (N, 2, 4, 5), ints(0, 1, 1, 2, 0, 0, 3, 1), mode="edge")
case("Pad", "wrap", (N, 4, 5), ints(0, 1, 2, 0, 0, 1), mode="wrap", opset=19)
UNEVEN: dict[str, Any] = {"strides": [2, 2], "pads": [1, 1, 0, 0], "dilations": [1, 2]}
case("Col2Im", "overlapping", (N, 2 * 9, 4), np.array([5, 7]), np.array([3, 3]), **UNEVEN)
case("Col2Im", "side by side", (N, 3 * 4, 6), np.array([4, 6]), np.array([2, 2]), strides=[2, 2])
for mode in ("DCR", "CRD"):
    case("DepthToSpace", mode, (N, 8, 2, 3), blocksize=2, mode=mode)
case("SpaceToDepth", "plain", (N, 2, 4, 6), blocksize=2)
case("Trilu", "upper", (N, 4, 5))
case("Trilu", "lower", (N, 4, 5), np.array(-1, np.int64), upper=0)

# Indexing
case("Gather", "class token", (N, 5, 4), np.array(0, np.int64), axis=1)
case("Gather", "last", (N, 5, 4), np.array(-1, np.int64), axis=2)
case("Gather", "one kept", (N, 5, 4), ints(2), axis=1)
case("Gather", "repeated", (N, 5, 4), np.array([[0, 3], [3, -1]], np.int64), axis=1)
case("Gather", "rows", (7, 4), np.array([0, 6, 6], np.int64))
case("GatherElements", "plain", (3, 5, 4), np.array([[[0, 4, 4, -1]]] * 3, np.int64), axis=1)
case("GatherND", "blocks", (4, 5, 3), np.array([[[0, 4], [3, 1]], [[0, 4], [2, -1]]], np.int64))
case("GatherND", "rows", (4, 5, 3), np.array([[3], [3], [0]], np.int64))
case("ScatterElements", "put", (3, 5), np.array([[1, 3], [0, -1]], np.int64), (2, 2), axis=1)
case("ScatterElements", "add", (3, 5), np.array([[1, 1], [0, 4]], np.int64), (2, 2), axis=1, reduction="add")
case("ScatterND", "put", (5, 4), np.array([[1], [3]], np.int64), (2, 4))
case("ScatterND", "add", (5, 4), np.array([[1], [1]], np.int64), (2, 4), reduction="add")

# Resize


def resize(label: str, shape: Shape, *scales: float, at: str = "half_pixel", near: str = "", **options: Any) -> None:
    """A Resize of the last axes of `shape` by `scales`."""
    options |= {"coordinate_transformation_mode": at, **({"nearest_mode": near} if near else {})}
    factors = [1.0] * (len(shape) - len(scales)) + list(scales)
    case("Resize", label, shape, None, np.array(factors, np.float32), **options)


SMALL, LARGE = (N, 2, 4, 5), (N, 2, 7, 9)
resize("nearest, twice", SMALL, 2, 2, mode="nearest", at="asymmetric", near="floor", torch=True)
resize("nearest, up", SMALL, 1.5, 2.2, mode="nearest")
resize("nearest, up, ceil", SMALL, 1.5, 2.2, mode="nearest", near="round_prefer_ceil")
resize("nearest, down", LARGE, 0.5, 0.4, mode="nearest", near="ceil")
resize("nearest, ties, floor", SMALL, 2, 2, mode="nearest", at="asymmetric", near="round_prefer_floor")
resize("nearest, ties, ceil", SMALL, 2, 2, mode="nearest", at="asymmetric", near="round_prefer_ceil")
resize("linear", SMALL, 2, 2, mode="linear", torch=True)
resize("linear, down", LARGE, 0.5, 0.6, mode="linear")
resize("linear, asymmetric", SMALL, 2, 2, mode="linear", at="asymmetric")
resize("linear, pytorch", SMALL, 0.25, 2, mode="linear", at="pytorch_half_pixel")
resize("linear, symmetric", SMALL, 1.3, 1.7, mode="linear", at="half_pixel_symmetric", opset=19)
FRACTION = {"oracle": "onnxruntime", "note": "onnx.reference aligns corners with a size that is not whole"}
resize("linear, corners", SMALL, 2, 3, mode="linear", at="align_corners")
resize("linear, corners, rest", SMALL, 1.3, 1.7, mode="linear", at="align_corners", **FRACTION)
resize("all axes", (3, 4), 2, 1.5, mode="linear")
case("Resize", "sizes", SMALL, None, None, ints(7, 9), axes=[2, 3], mode="linear")
case("Resize", "some axes", SMALL, None, np.array([2, 3], np.float32), mode="nearest", axes=[2, 3])

# Norms
SINGLE: dict[str, Any] = {"oracle": "onnxruntime", "note": "it computes in float32 in any case"}
case("BatchNormalization", "all inputs", (N, 3, 4, 5), (3,), (3,), (3,), positive(3), epsilon=1e-3)
case("BatchNormalization", "vectors", (N, 3), (3,), (3,), (3,), positive(3))
case("LayerNormalization", "last axis", (N, 4, 6), (6,), (6,), epsilon=1e-3)
case("LayerNormalization", "no bias", (N, 4, 6), (6,))
case("LayerNormalization", "two axes", (N, 3, 4, 5), (4, 5), (4, 5), axis=2)
case("LayerNormalization", "statistics", (N, 4, 6), (6,), (6,), outputs=3, **SINGLE)
case("LayerNormalization", "statistics only", (N, 4, 6), (6,), outputs=3, used=(1, 2), none=(1,), **SINGLE)
case("InstanceNormalization", "2d", (N, 3, 4, 5), (3,), (3,))
case("InstanceNormalization", "1d", (N, 3, 6), (3,), (3,), epsilon=1e-3)
case("GroupNormalization", "per group", (N, 6, 3, 4), (2,), (2,), num_groups=2, retired=True, **SINGLE)
case("GroupNormalization", "per channel", (N, 6, 3, 4), (6,), (6,), num_groups=2, epsilon=1e-3, opset=21, **SINGLE)
case("Moments", "both", (N, 3, 4, 5))
case("Moments", "mean", (N, 3, 4, 5), used=(0,))
case("Moments", "variance", (N, 3, 6), used=(1,))

# Entropies
case("Entropy", "classes", (N, 5), axis=1, used=(0,))
case("Entropy", "dense", (N, 5, 3, 4), axis=1, used=(0,))
case("Entropy", "channels last", (N, 3, 4, 2), axis=3, used=(0,))
case("BinaryEntropy", "plain", (N, 3, 4))

# Recurrent layers: [T, N, I], weights [directions, gates * H, I]; the weights get no gradient
for name, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    small = [fixed(1, gates * 3, 4), fixed(1, gates * 3, 3), fixed(1, gates * 6)]
    double = [fixed(2, gates * 3, 4), fixed(2, gates * 3, 3), fixed(2, gates * 6)]
    case(name, "forward", (5, N, 4), *small, hidden_size=3, outputs=1, torch=True)
    case(name, "reverse", (5, N, 4), *small, hidden_size=3, outputs=1, direction="reverse", torch=True)
    case(name, "both", (5, N, 4), *double, hidden_size=3, outputs=1, direction="bidirectional", torch=True)
    case(name, "last state", (5, N, 4), *small, None, (1, N, 3), hidden_size=3, outputs=2, used=(1,), torch=True)
    case(name, "one step, no bias", (1, N, 4), *small[:2], hidden_size=3, outputs=1, torch=True)
state = (2, N, 3)
case("LSTM", "states", (5, N, 4), *[fixed(2, 12, 4), fixed(2, 12, 3), fixed(2, 24)], None, state, state, outputs=3,
     hidden_size=3, direction="bidirectional", torch=True)  # fmt: skip
case("GRU", "linear before reset", (5, N, 4), *[fixed(2, 9, 4), fixed(2, 9, 3), fixed(2, 18)], None, state, outputs=2,
     hidden_size=3, direction="bidirectional", linear_before_reset=1, used=(0,), torch=True)  # fmt: skip
