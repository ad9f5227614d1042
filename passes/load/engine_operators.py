"""Write the operators that onnxruntime fuses (`com.microsoft`) as the standard operators that they stand for.

Engines and optimisers write such files.  The definitions are those of onnxruntime's contributed operators, and the
tests execute both forms.  An operator without a rule, or in a variant without one, stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ttac.passes.graph.rewire import initializer

DOMAIN = "com.microsoft"
"""Operator domain of onnxruntime's contributed operators."""
STANDARD = frozenset({"QLinearConv", "QLinearMatMul"})
"""Operators of standard ONNX that have a rule too: their integers state no meaning in float."""
Rule = Callable[["Writer", ir.Node], "Sequence[ir.Value | None] | None"]
RULES: dict[str, Rule] = {}


def unfused(*op_types: str) -> Callable[[Rule], Rule]:
    """Register the decorated function for these operators.

    It returns a value for each output, None for an output without one; it returns None, before it writes a node, where
    it does not cover the node.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(op_types, function))
        return function

    return register


def unfuse(model: ir.Model, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Replace each fused operator that has a rule, in place; return, and `say`, the names of the replaced operators."""
    replaced: dict[str, None] = {}
    for node in [node for node in model.graph if node.op_type in RULES and node.domain in _domains(node.op_type)]:
        writer = Writer(model, node)
        results = RULES[node.op_type](writer, node)
        found = [*(results or ()), *[None] * len(node.outputs)]
        pairs = list(zip(node.outputs, found, strict=False))
        if any(result is None and (old.uses() or old.is_graph_output()) for old, result in pairs):
            model.graph.remove(writer.nodes, safe=False)
            continue
        for old, result in pairs:
            if result is not None:
                name, old.name = old.name, None
                ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
                result.name, result.type, result.shape = name, result.type or old.type, result.shape or old.shape
        model.graph.remove(node, safe=True)
        replaced[node.op_type] = None
    if replaced:
        say(f"written as standard operators: {', '.join(f'`{name}`' for name in replaced)}")
    return list(replaced)


def _domains(op_type: str) -> tuple[str, ...]:
    return ("", "ai.onnx") if op_type in STANDARD else (DOMAIN,)


class Writer:
    """Writes standard nodes in front of a fused one, in the form of the file's opset."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self._graph, self._node, self.opset, self.nodes = model.graph, node, model.opset_imports[""], list[ir.Node]()

    def __call__(self, op_type: str, *inputs: Any, **attributes: Any) -> ir.Value:
        """Append a node, and return its output; numbers and arrays become constants."""
        return self.several(op_type, 1, *inputs, **attributes)[0]

    def several(self, op_type: str, outputs: int, *inputs: Any, **attributes: Any) -> Sequence[ir.Value]:
        """Append a node with several outputs, and return them."""
        values = [value if value is None or isinstance(value, ir.Value) else self.constant(value) for value in inputs]
        while values and values[-1] is None:
            values.pop()
        name = self._node.name if not self.nodes else f"{self._node.name}.{len(self.nodes)}"
        node = ir.node(op_type, values, attributes, name=name, num_outputs=outputs)
        for place, value in enumerate(node.outputs):
            value.name = f"{self._node.outputs[0].name}.{op_type.lower()}.{len(self.nodes)}.{place}"
        self._graph.insert_before(self._node, node)
        self.nodes.append(node)
        return node.outputs

    def constant(self, content: Any) -> ir.Value:
        """Return an initializer: float32 for floats, int64 for integers."""
        array = np.asarray(content)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        name = f"{self._node.outputs[0].name}.constant.{len(self._graph.initializers)}"
        return initializer(self._graph, name, array)

    def along(self, op_type: str, x: ir.Value, axes: list[int], since: int, **more: Any) -> ir.Value:
        """Append a node whose axes are an input from opset `since`, an attribute before."""
        return self(op_type, x, axes, **more) if self.opset >= since else self(op_type, x, axes=axes, **more)

    def layer_norm(self, x: ir.Value, scale: ir.Value, bias: ir.Value | None, epsilon: float) -> ir.Value:
        """Append a layer norm over the last axis."""
        if self.opset >= 17:
            return self("LayerNormalization", x, scale, bias, epsilon=epsilon, axis=-1)
        centred = self("Sub", x, self.along("ReduceMean", x, [-1], 18))
        variance = self.along("ReduceMean", self("Mul", centred, centred), [-1], 18)
        y = self("Mul", self("Div", centred, self("Sqrt", self("Add", variance, epsilon))), scale)
        return y if bias is None else self("Add", y, bias)

    def swapped(self, x: ir.Value) -> ir.Value | None:
        """Append a Transpose of the last two axes; return None where the number of axes is unknown."""
        if x.shape is None:
            return None
        last = len(x.shape) - 1
        return self("Transpose", x, perm=[*range(last - 1), last, last - 1])


def given(node: ir.Node, position: int) -> ir.Value | None:
    """Return the input at `position`, None if the node leaves it out."""
    return node.inputs[position] if position < len(node.inputs) else None


def activated(op: Writer, node: ir.Node, x: ir.Value) -> ir.Value | None:
    """Append the activation that the node states."""
    name = node.attributes.get_string("activation", "")
    numbers = list(node.attributes.get_floats("activation_params", ()) or ())
    if name in ("", "Relu", "Tanh", "Sigmoid"):
        return op(name, x) if name else x
    if name == "LeakyRelu":
        return op(name, x, alpha=numbers[0] if numbers else node.attributes.get_float("activation_alpha", 0.01))
    if name == "HardSigmoid" and len(numbers) == 2:
        return op(name, x, alpha=numbers[0], beta=numbers[1])
    if name == "Clip" and len(numbers) == 2 and op.opset >= 11:
        return op(name, x, np.float32(numbers[0]), np.float32(numbers[1]))
    return None


def without(node: ir.Node, *names: str) -> dict[str, Any]:
    """Return the attributes of the node but these."""
    return {name: attribute.value for name, attribute in node.attributes.items() if name not in names}


ACTIVATION = ("activation", "activation_params", "activation_alpha", "activation_beta", "activation_gamma")


@unfused("FusedConv")
def _conv(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = activation(conv(x, w, b) + z)."""
    y = op("Conv", *node.inputs[:3], **without(node, *ACTIVATION))
    y = y if given(node, 3) is None else op("Add", y, given(node, 3))
    return [activated(op, node, y)]


@unfused("NhwcConv", "NhwcFusedConv")
def _conv_with_channels_last(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = activation(conv(x, w, b) + z) for x, y and z of the form [N, H, W, C]."""
    kernel = _channels_second(op, node)
    if kernel is None:
        return None
    x = op("Transpose", node.inputs[0], perm=[0, 3, 1, 2])
    y = op("Conv", x, kernel, given(node, 2), **without(node, *ACTIVATION))
    y = op("Transpose", y, perm=[0, 2, 3, 1])
    y = y if given(node, 3) is None else op("Add", y, given(node, 3))
    return [activated(op, node, y)]


def _channels_second(op: Writer, node: ir.Node) -> ir.Value | None:
    """Return the kernel as [M, C / group, H, W]: some engines keep it, others write [M, H, W, C / group].

    None if the sizes do not tell which, or if it has other axes.
    """
    x, kernel = node.inputs[:2]
    shape = None if kernel is None else kernel.shape if kernel.const_value is None else kernel.const_value.shape
    if x is None or kernel is None or shape is None or len(shape) != 4:
        return None
    sizes, stated = list(shape), list(node.attributes.get_ints("kernel_shape", ()) or ())
    channels = x.shape[3] if x.shape is not None and len(x.shape) == 4 else None
    each = channels // node.attributes.get_int("group", 1) if isinstance(channels, int) else None

    def fits(own: Any, window: list[Any]) -> bool:
        return (each is None or own == each) and stated in ([], window)

    second, last = fits(sizes[1], sizes[2:]), fits(sizes[3], sizes[1:3])
    if second == last:
        return None
    return kernel if second else op("Transpose", kernel, perm=[0, 3, 1, 2])


@unfused("FusedGemm")
def _gemm(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = activation(gemm(a, b, c))."""
    return [activated(op, node, op("Gemm", *node.inputs, **without(node, *ACTIVATION)))]


@unfused("FusedMatMul", "TransposeMatMul")
def _matmul(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = alpha * a b, with the last two axes of a or b swapped."""
    if any(node.attributes.get_int(name, 0) for name in ("transBatchA", "transBatchB")):
        return None
    factors = []
    for value, name in zip(node.inputs, ("transA", "transB"), strict=True):
        assert value is not None
        factors.append(op.swapped(value) if node.attributes.get_int(name, 0) else value)
    if None in factors:
        return None
    y, alpha = op("MatMul", *factors), node.attributes.get_float("alpha", 1.0)
    return [y if alpha == 1.0 else op("Mul", y, alpha)]


@unfused("Gelu", "BiasGelu")
def _gelu(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = x/2 * (1 + erf(x / sqrt 2)), of x + bias."""
    x = op("Add", *node.inputs) if node.op_type == "BiasGelu" else node.inputs[0]
    inner = op("Add", op("Erf", op("Div", x, math.sqrt(2))), 1.0)
    return [op("Mul", op("Mul", x, inner), 0.5)]


@unfused("FastGelu")
def _fast_gelu(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))), of x + bias."""
    x = node.inputs[0] if given(node, 1) is None else op("Add", *node.inputs)
    cubic = op("Add", x, op("Mul", op("Pow", x, 3.0), 0.044715))
    inner = op("Add", op("Tanh", op("Mul", cubic, math.sqrt(2 / math.pi))), 1.0)
    return [op("Mul", op("Mul", x, 0.5), inner)]


@unfused("QuickGelu")
def _quick_gelu(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = x * sigmoid(alpha * x)."""
    x = node.inputs[0]
    return [op("Mul", x, op("Sigmoid", op("Mul", x, node.attributes.get_float("alpha", 1.702))))]


@unfused("SkipLayerNormalization")
def _skip_layer_norm(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = layer norm of (x + skip + bias); the fourth output is the sum."""
    x, skip, scale, shift, bias = (given(node, place) for place in range(5))
    assert scale is not None
    total = op("Add", x, skip) if bias is None else op("Add", op("Add", x, skip), bias)
    return [op.layer_norm(total, scale, shift, node.attributes.get_float("epsilon", 1e-12)), None, None, total]


@unfused("EmbedLayerNormalization")
def _embeddings(op: Writer, node: ir.Node) -> list[ir.Value | None] | None:
    """y = layer norm of the sum of the embeddings of words, positions and segments; then the lengths, and the sum."""
    ids, segments, words, places, kinds, scale, shift, mask, positions = (given(node, place) for place in range(9))
    assert scale is not None
    total = op("Gather", words, ids)
    if positions is not None:
        total = op("Add", total, op("Gather", places, positions))
    else:
        length = op("Slice", op("Shape", ids), [1], [2], [0])
        total = op("Add", total, op("Slice", places, [0], length, [0]))
    if segments is not None and kinds is not None:
        total = op("Add", total, op("Gather", kinds, segments))
    y = op.layer_norm(total, scale, shift, node.attributes.get_float("epsilon", 1e-12))
    lengths = None if mask is None else op.along("ReduceSum", mask, [1], 13, keepdims=0)
    return [y, lengths, total]
