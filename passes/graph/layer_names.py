"""Names that people recognise: the module of the source network that a node came from, `layer1.0.bn1`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

import onnx_ir as ir

from ttac.passes.graph.keys import LAYER

FOLDED = "ttac.folded"
"""Node metadata: name of the norm that the exporter folded into this node, `?` where the file does not name the norm.
"""

FOLDED_EPSILON = "ttac.folded_epsilon"
"""Node metadata: default epsilon of the folded norm's framework, if the framework is not PyTorch."""

SCOPES, REWRITES = "pkg.torch.onnx.name_scopes", "pkg.onnxscript.rewriter.rule_name"
RENAMED = re.compile(r"onnx::Conv\w*_\d+")
TENSORFLOW = re.compile(r"(.+)/batchnorm/\w+(?::\d+)?")
"""Names of the values that TensorFlow computes for a batch norm in inference: `model/bn/batchnorm/sub:0`."""
TENSORFLOW_EPSILON = "0.001"
"""Default epsilon of Keras' batch norm."""

KERNEL = re.compile(r"(.+)/(?:convolution|depthwise|conv_transpose|separable_conv2d)(?:[/_].*)?")
"""Names of a convolution's kernel in TensorFlow: `model/conv/convolution/ReadVariableOp:0`.

TensorFlow Lite joins the names of fused operators: `model/relu/Relu;model/bn/batchnorm/add_1;model/conv/convolution`.
"""

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
"""Convolutions, into which most exporters fold a batch norm."""
FOLDABLE = CONVOLUTIONS | {"Gemm"}
"""Operators into which exporters fold a batch norm: kernel second, bias third."""

PARAMETRIC = {
    "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "GroupNormalization",
    "InstanceNormalization", "LSTM", "LayerNormalization", "PRelu", "RNN",
}  # fmt: skip
"""Operators with parameters: their names keep the module alone, without the operator."""


def name_layers(model: ir.Model) -> None:
    """Give every node without a layer its layer's name, and mark the nodes that the exporter folded a norm into.

    In place.
    """
    for node in model.graph:
        if LAYER not in node.metadata_props:
            node.metadata_props[LAYER] = layer_name(node)
            if folded := folded_norm(node):
                node.metadata_props[FOLDED] = folded
                if _by_tensorflow(node):
                    node.metadata_props[FOLDED_EPSILON] = TENSORFLOW_EPSILON


def name_nodes(model: ir.Model) -> None:
    """Give every node a unique name, that of its first output where the file has none; in place."""
    taken: set[str] = set()
    for node in model.graph:
        node.name = unique(node.name or str(node.outputs[0].name), taken)
        taken.add(node.name)


def unique_layers(model: ir.Model) -> None:
    """Make the layers of nodes with parameters unique, then those of all others; in place."""
    taken: set[str] = set()
    for node in sorted(model.graph, key=lambda node: node.op_type not in PARAMETRIC):
        node.metadata_props[LAYER] = unique(node.metadata_props[LAYER], taken)
        taken.add(node.metadata_props[LAYER])


def unique(name: str, taken: Iterable[str]) -> str:
    """Return `name`, or the first free name of `name@2`, `name@3`, ...: further uses of one module."""
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}@{count}"
    return candidate


def layer_name(node: ir.Node) -> str:
    """Return the module that a node came from, `model.0.bn` style, never empty; the best source comes first.

    1. the prefix of a parameter that only this node reads, as PyTorch names it (`layer1.0.bn1.weight`);
    2. the scopes that torch's dynamo exporter notes down;
    3. the scoped name of other exporters (`/layer1/layer1.0/bn1/BatchNormalization`);
    4. the path of a convolution's kernel in TensorFlow (`model/conv/convolution/ReadVariableOp:0`);
    5. the node's name, or that of its first output.
    """
    for value in node.inputs:
        owner = _owner(value)
        if owner and len(value.uses()) == 1:  # type: ignore[union-attr]
            return owner
    name = node.name or node.outputs[0].name or node.op_type
    kernel = _path_in_name(KERNEL, node.inputs[1]) if node.op_type in CONVOLUTIONS and len(node.inputs) > 1 else ""
    if kernel and ("/" not in name or ";" in name):  # tf2onnx numbers convolutions of several nodes
        return kernel
    name = name.partition(";")[0]
    scoped = _dynamo_scope(node) or (_path_scope(node.op_type, name) if "/" in name else "")
    return scoped or name.strip("/").replace("/", ".")


def folded_norm(node: ir.Node) -> str:
    """Return the name of the norm that the exporter folded into a node, or "".

    The name is `?` if the file does not state it. torch's dynamo exporter notes the rewrite. Its older exporter
    renames the tensors that it computes, so that both the kernel and the bias of the convolution lose their names.
    TensorFlow folds the scale of a norm into the kernel where it can. The remainder keeps the norm's name: the bias
    of the convolution, or a scale and a shift behind it.
    """
    if name := _by_tensorflow(node):
        return name
    if node.op_type not in FOLDABLE:
        return ""
    if "FuseBatchNorm" in node.metadata_props.get(REWRITES, ""):
        return _scopes(node)[-2] if len(_scopes(node)) > 1 else "?"
    names = [str(value.name) for value in node.inputs[1:] if value is not None]
    return "?" if len(names) == 2 and all(RENAMED.fullmatch(name) for name in names) else ""


def _by_tensorflow(node: ir.Node) -> str:
    """Return the norm that TensorFlow left in a convolution or a scale, by its names; empty if there is none."""
    if node.op_type == "Mul":
        match = TENSORFLOW.fullmatch(str(node.name))
        return _dotted(match[1]) if match is not None else ""
    return _path_in_name(TENSORFLOW, node.inputs[2]) if node.op_type in FOLDABLE and len(node.inputs) > 2 else ""


def _path_in_name(pattern: re.Pattern[str], value: ir.Value | None) -> str:
    """Return the path that `pattern` captures in one of the names of a constant, float or 8-bit.

    Empty if none matches.
    """
    maker = value.producer() if value is not None else None
    if maker is not None and maker.op_type == "DequantizeLinear":
        value = maker.inputs[0]
    if value is None or value.const_value is None:
        return ""
    matches = [match for part in str(value.name).split(";") if (match := pattern.fullmatch(part)) is not None]
    return _dotted(matches[0][1]) if matches else ""


def _dotted(path: str) -> str:
    return path.strip("/").replace("/", ".")


def _owner(value: ir.Value | None) -> str:
    if value is None or value.const_value is None or value.producer() is not None:
        return ""
    name = str(value.name)
    return name.rpartition(".")[0] if "/" not in name and ":" not in name else ""


def _scopes(node: ir.Node) -> list[str]:
    try:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # the text is a stranger's
        return []
    return [str(scope) for scope in scopes] if isinstance(scopes, list) else []


def _dynamo_scope(node: ir.Node) -> str:
    scopes = _scopes(node)
    if len(scopes) < 2:
        return ""
    module, function = scopes[-2:]
    return module if module and node.op_type in PARAMETRIC else ".".join(part for part in (module, function) if part)


def _path_scope(op_type: str, name: str) -> str:
    """Turn `/layer2/layer2.0/down/down.0/Conv` into `layer2.0.down.0`.

    A part that repeats its parent's name replaces the parent.
    """
    *parts, last = [part for part in name.split("/") if part]
    path: list[str] = []
    for part in parts:
        repeated = path and part.startswith(path[-1] + ".")
        path[-1:] = [part] if repeated else [*path[-1:], part]
    if op_type not in PARAMETRIC:
        path.append(last.lower())
    return ".".join(path)
